// SPDX-License-Identifier: GPL-2.0-only

//! Addresses that are none of the caller's, or not for long.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use libc::{EFAULT, ENOENT};

use super::{call, expect, expect_error};
use crate::device::{Device, IRQ};
use crate::tiny::{COUNT, DIE, Memory, PAGE, RING, Tiny, key_of, reason, say};

/// `read()` into, or `write()` from, an address.
fn at(number: libc::c_long, device: &Device, place: usize, length: usize) -> Result<usize, i32> {
    let fd = device.0.as_raw_fd() as usize;
    // SAFETY: The callers below name pages that are theirs, or where nothing is.
    unsafe { call(number, &[fd, place, length]) }
}

/// Changes what may be done with pages of a memory.
fn protect(memory: &Memory, page: usize, pages: usize, protection: i32) -> Result<()> {
    let place = memory.address() + page * PAGE;
    // SAFETY: The pages belong to the caller, who uses them only by system calls from here on.
    let done = unsafe {
        call(
            libc::SYS_mprotect,
            &[place, pages * PAGE, protection as usize],
        )
    };
    expect("mprotect()", done, Ok(0))
}

/// Bad addresses for `read()` and `write()`: EFAULT each time, and no record lost.
pub fn pointers(_: &[String]) -> Result<()> {
    // Pages: 0 and 1 useable, 2 not there, 3 read-only, 4 useable, 5 without any right.
    let pages = Memory::new(6)?;
    let page = |n: usize| pages.address() + n * PAGE;
    for n in [0, 1, 3, 4] {
        pages.write(n * PAGE, IRQ);
        pages.write(n * PAGE + 8, 63);
    }
    protect(&pages, 3, 1, libc::PROT_READ)?;
    protect(&pages, 5, 1, libc::PROT_NONE)?;
    // SAFETY: The page is this function's own; nothing uses it again.
    let done = unsafe { call(libc::SYS_munmap, &[page(2), PAGE]) };
    expect("munmap()", done, Ok(0))?;

    let nowhere = [
        0,
        8,
        page(2),
        page(2) - 8,
        page(5),
        page(5) - 8,
        (1 << 47) - 4096,
        (1 << 47) - 8,
        1 << 47,
        1 << 56,
        1 << 63,
        0xffff_8880_0010_0000,
        0xffff_ffff_8100_0000,
        0xffff_ffff_ffff_f000,
        usize::MAX - 7,
    ];
    for program in [COUNT, RING] {
        let guest = Tiny::new(32, program)?;
        let device = &guest.device;
        let mut key = 0;
        let good = |key: &mut u64| {
            *key += 1;
            guest.expect("the record after a bad buffer", *key - 1)
        };
        for place in nowhere.into_iter().chain([page(3), page(4) - 8]) {
            let what = format!("read() into {place:#x}");
            // Twice: the second one must not come further than the first.
            for _ in 0..2 {
                expect_error(&what, at(libc::SYS_read, device, place, 24), EFAULT)?;
            }
            good(&mut key)?;
        }
        for place in nowhere {
            let answer = at(libc::SYS_write, device, place, 16);
            expect_error(&format!("write() from {place:#x}"), answer, EFAULT)?;
        }
        // The last bytes of a page, and what may only be read.
        let end = page(2);
        expect(
            "read() to the end of a page",
            at(libc::SYS_read, device, end - 24, 24),
            Ok(24),
        )?;
        key += 1;
        expect(
            "write() from what may be read",
            at(libc::SYS_write, device, page(3), 16),
            Ok(16),
        )?;
        pages.write(2 * PAGE - 16, IRQ);
        pages.write(2 * PAGE - 8, 63);
        expect(
            "write() of a page's end",
            at(libc::SYS_write, device, end - 16, 16),
            Ok(16),
        )?;
        pages.write(2 * PAGE - 8, IRQ);
        expect_error(
            "write() across it",
            at(libc::SYS_write, device, end - 8, 16),
            EFAULT,
        )?;
        good(&mut key)?;
    }

    // The reason of a dead Guest is not lost either.
    let dead = Tiny::new(32, DIE)?;
    expect_error(
        "the end, told into nowhere",
        at(libc::SYS_read, &dead.device, 8, 24),
        ENOENT,
    )?;
    for place in nowhere {
        let answer = at(libc::SYS_read, &dead.device, place, 24);
        expect_error(&format!("the reason into {place:#x}"), answer, EFAULT)?;
    }
    let reason = reason_again(&dead.device)?;
    ensure!(reason.contains("trap 6"), "{reason:?}");
    Ok(())
}

/// The reason of a Guest of which it is known that it is dead.
fn reason_again(device: &Device) -> Result<String> {
    match device.read(256) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Err(_) => reason(device),
    }
}

/// How long a race is run.
const RACE: Duration = Duration::from_millis(700);
/// And at most, if chance does not let both ends happen.
const LONG_RACE: Duration = Duration::from_secs(20);

/// A page that another thread takes away and puts back, under `read()` and under `write()`.
pub fn races(_: &[String]) -> Result<()> {
    let (done, failed) = race(PAGE / 2, protect_both)?;
    println!("note: mprotect(): {done} records, {failed} EFAULTs");
    let (done, failed) = race(PAGE - 12, unmap)?;
    println!("note: munmap(): {done} records, {failed} EFAULTs");
    Ok(())
}

/// Takes all rights of the second page and gives them back.
fn protect_both(pages: &Memory) -> Result<()> {
    protect(pages, 0, 2, libc::PROT_NONE)?;
    // With one processor the reader has a chance only now.
    thread::yield_now();
    protect(pages, 0, 2, libc::PROT_READ | libc::PROT_WRITE)
}

/// Unmaps the second page and maps a new one in its place.
fn unmap(pages: &Memory) -> Result<()> {
    let place = pages.address() + PAGE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let flags = [3, flags as usize, usize::MAX, 0];
    // SAFETY: The page is the race's own, and nothing but system calls touches it.
    unsafe {
        expect("munmap()", call(libc::SYS_munmap, &[place, PAGE]), Ok(0))?;
        thread::yield_now();
        let [protection, flags, fd, offset] = flags;
        let mapped = call(
            libc::SYS_mmap,
            &[place, PAGE, protection, flags, fd, offset],
        );
        expect("mmap()", mapped, Ok(place))
    }
}

/// Reads records into a place that `disturb` makes unuseable again and again. Gives how many
/// records came and how many times there was nowhere to put one.
fn race(offset: usize, disturb: fn(&Memory) -> Result<()>) -> Result<(u64, u64)> {
    let guest = Tiny::new(32, COUNT)?;
    let pages = Memory::new(2)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let disturber = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                disturb(&pages)?;
                // So that now and then something comes through.
                thread::sleep(Duration::from_micros(200));
            }
            Ok(())
        });
        let run = || -> Result<(u64, u64)> {
            let (mut key, mut failed) = (0, 0);
            let begun = Instant::now();
            let place = pages.address() + offset;
            let both = |key, failed| key > failed && failed > 0;
            while begun.elapsed() < RACE || !both(key, failed) && begun.elapsed() < LONG_RACE {
                match at(libc::SYS_read, &guest.device, place, 24) {
                    Ok(24) => key += 1,
                    Err(EFAULT) => {
                        failed += 1;
                        // Whatever was half copied: the whole record comes again.
                        let record = guest.device.read(24);
                        let record = record.map_err(|n| anyhow::anyhow!("read(): {n}"))?;
                        let found = key_of(&record)?;
                        ensure!(found == key, "key {found} instead of {key} after EFAULT");
                        key += 1;
                    }
                    other => bail!("read() in a race: {}", say(other)),
                }
                match at(libc::SYS_write, &guest.device, place, 16) {
                    // Half a record is not a request, and a page of zeros is not one either.
                    Err(EFAULT | libc::EINVAL | libc::EBUSY) => {}
                    other => bail!("write() in a race: {}", say(other)),
                }
            }
            Ok((key, failed))
        };
        let result = run();
        stop.store(true, Ordering::Relaxed);
        let disturbed = disturber.join();
        disturbed.map_err(|_| anyhow::anyhow!("the other thread panicked"))??;
        let (done, failed) = result?;
        ensure!(
            done > 0 && failed > 0,
            "{done} records, {failed} failures: no race at all"
        );
        Ok((done, failed))
    })
}
