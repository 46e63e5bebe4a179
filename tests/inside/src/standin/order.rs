// SPDX-License-Identifier: GPL-2.0-only

//! Requests with every kind of number, in every order, from many threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use libc::{EAGAIN, EBUSY, EINTR, EINVAL, ENOENT, EPERM, ESHUTDOWN};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{expect, expect_error};
use crate::device::{BREAK, Device, GETDMA, INITIALIZE, IRQ};
use crate::tiny::{
    BOUND, BOUND_COUNT, BOUND_KEY, BOUND_LINE, BOUND_RECORDS, DIE, END_AS, HALT, Memory, PAGE,
    Program, Tiny, reason, say,
};

/// Linux's `ERESTART`, which a user program never sees otherwise.
const ERESTART: i32 = 85;

/// INITIALIZE with each word out of range, at the border, wrapping and off its boundary.
pub fn initialize(_: &[String]) -> Result<()> {
    let memory = Memory::new(32)?;
    let pages = memory.pages() as u64;
    let bytes = pages * PAGE as u64;
    let good = memory.load(DIE);
    let [_, base, _, _, entry, root, _] = good;
    let end = 1_u64 << 47;
    let with = |changes: &[(usize, u64)]| {
        let mut words = good;
        for (place, value) in changes {
            words[*place] = *value;
        }
        words
    };
    let mut refused = Vec::new();
    for off in [1, 2, 7, 8, 16, 511, 512, 2048, 4088, 4095] {
        refused.push(with(&[(1, base + off)]));
        refused.push(with(&[(5, root + off)]));
    }
    // A base that is no process's, or from which the memory would leave the lower half or wrap.
    for base in [
        end - bytes,
        end - 4096,
        end,
        1 << 63,
        0xffff_8880_0000_0000,
        0_u64.wrapping_sub(bytes),
        0_u64.wrapping_sub(4096),
    ] {
        refused.push(with(&[(1, base)]));
    }
    for pages in [
        0,
        end / 4096,
        (1 << 52) - 1,
        1 << 52,
        (1 << 52) + pages,
        (1 << 63) + pages,
        u64::MAX,
    ] {
        refused.push(with(&[(2, pages), (3, pages)]));
    }
    for limit in [0, 1, pages - 1, 1 << 52, pages | 1 << 32, u64::MAX] {
        refused.push(with(&[(3, limit)]));
    }
    // More than a Guest can have, where there would be room for it.
    for limit in [(1_u64 << 31) + 1, 1 << 32, 1 << 34] {
        refused.push(with(&[(1, 1 << 30), (3, limit)]));
    }
    // More memory than the device limit allows, which alone would do.
    for memory in [0, pages + 1, 1 << 52, u64::MAX] {
        refused.push(with(&[(2, memory)]));
    }
    for entry in [
        end,
        end | entry,
        1 << 63,
        0xffff_7fff_ffff_ffff,
        0xfff0_0000_0000_0000,
        (1 << 56) | entry,
    ] {
        refused.push(with(&[(4, entry)]));
    }
    for root in [
        bytes,
        bytes + 4096,
        base,
        1 << 52,
        1 << 63 | root,
        0_u64.wrapping_sub(4096),
        u64::MAX,
    ] {
        refused.push(with(&[(5, root)]));
    }
    for levels in [0, 1, 2, 3, 5, 6, 4 | 1 << 32, 1 << 63, u64::MAX] {
        refused.push(with(&[(6, levels)]));
    }
    let device = Device::open()?;
    for words in &refused {
        let what = format!("INITIALIZE {:x?}", &words[1..]);
        expect_error(&what, device.request(words), EINVAL)?;
        expect_error(&format!("read() after {what}"), device.read(24), EINVAL)?;
    }
    // After all that the same file is as good as new.
    expect("INITIALIZE", device.request(&good), Ok(56))?;
    for words in refused.iter().chain([&good]) {
        expect_error("a second INITIALIZE", device.request(words), EBUSY)?;
    }
    ensure!(
        reason(&device)?.contains("trap 6"),
        "the second one took hold"
    );

    // At the border: a first instruction at the last addresses there are, a root in any page.
    for (place, value) in [
        (4, 0),
        (4, end - 1),
        (4, 0xffff_8000_0000_0000),
        (4, u64::MAX),
        (5, 0),
        (5, bytes - 4096),
    ] {
        let device = Device::open()?;
        let words = with(&[(place, value)]);
        expect(
            &format!("INITIALIZE {words:x?}"),
            device.request(&words),
            Ok(56),
        )?;
        let reason = reason(&device)?;
        ensure!(!reason.is_empty(), "INITIALIZE {words:x?}: no reason");
    }
    // As much as a Guest can have, up to the end of the memory; most of it is not there.
    let device = Device::open()?;
    let most = 1_u64 << 31;
    let first = base + bytes - most * 4096;
    let words = [INITIALIZE, first, most, most, entry, base - first + root, 4];
    expect("INITIALIZE of 8 TiB", device.request(&words), Ok(56))?;
    // Guest-physical addresses begin elsewhere now: the tables name others.
    let reason = reason(&device)?;
    ensure!(!reason.is_empty(), "INITIALIZE of 8 TiB: no reason");
    Ok(())
}

/// What a Guest that is over answers.
pub fn after_the_end(_: &[String]) -> Result<()> {
    type Ending = (&'static str, Program, u64, i32);
    let endings: [Ending; 4] = [
        ("power-off", END_AS, 1, ESHUTDOWN),
        ("restart", END_AS, 2, ERESTART),
        ("crash", END_AS, 3, ENOENT),
        ("death", DIE, 0, ENOENT),
    ];
    for (what, program, how, number) in endings {
        let guest = Tiny::new(32, program)?;
        let device = &guest.device;
        guest.memory.set_word(0, how);
        guest
            .memory
            .set_word(1, u64::from_le_bytes(*b"word\0\0\0\0"));
        expect_error(what, device.read(24), number)?;
        for _ in 0..3 {
            match device.read(256) {
                Ok(text) if number == ENOENT => {
                    let text = String::from_utf8_lossy(&text).into_owned();
                    let says = if how == 3 { "word" } else { "trap 6" };
                    ensure!(text.contains(says), "after {what}: {text:?}");
                }
                Err(again) if number != ENOENT && again == number => {}
                other => bail!("read() after {what}: {}", say(other)),
            }
            let words = guest.memory.load(program);
            expect_error("INITIALIZE", device.request(&words), EBUSY)?;
            for line in [0, 1, 63] {
                let answer = device.request(&[IRQ, line]);
                expect(&format!("IRQ after {what}"), answer, Ok(16))?;
            }
            expect_error("IRQ 64", device.request(&[IRQ, 64]), EINVAL)?;
            expect_error("GETDMA", device.request(&[GETDMA, BOUND_KEY]), ENOENT)?;
            expect("BREAK off", device.request(&[BREAK, 0]), Ok(16))?;
        }
    }

    // GETDMA of records that are bound: each is given once, until there are no more; and every
    // number that is not the key finds nothing.
    let guest = Tiny::new(32, BOUND)?;
    guest.expect("the first record", 0)?;
    for key in [0, 6, 8, BOUND_KEY | 1 << 32, BOUND_KEY | 1 << 63, u64::MAX] {
        let answer = guest.device.request(&[GETDMA, key]);
        expect_error(&format!("GETDMA of key {key:#x}"), answer, ENOENT)?;
    }
    for n in 0..BOUND_COUNT {
        let answer = guest.device.request(&[GETDMA, BOUND_KEY]);
        let place = BOUND_RECORDS + 168 * n;
        expect("GETDMA", answer, Ok(place as usize))?;
        let used = guest.memory.read(place as usize);
        ensure!(
            used == u64::from(BOUND_LINE),
            "used_len is {used:#x}, not the line"
        );
    }
    expect_error(
        "one GETDMA more",
        guest.device.request(&[GETDMA, BOUND_KEY]),
        ENOENT,
    )?;
    guest.memory.write((BOUND_RECORDS + 168 * 3) as usize, 0);
    let answer = guest.device.request(&[GETDMA, BOUND_KEY]);
    expect(
        "GETDMA of one that is free again",
        answer,
        Ok((BOUND_RECORDS + 168 * 3) as usize),
    )?;
    guest.expect("the Guest has not noticed", 1)
}

/// BREAK: waits, comes through to a Guest that computes and to one that sleeps, ends with a signal.
pub fn breaks(_: &[String]) -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: The handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }?;
    for program in [crate::tiny::SPIN, HALT] {
        let guest = Tiny::new(32, program)?;
        let device = &guest.device;
        for _ in 0..3 {
            thread::scope(|scope| -> Result<()> {
                let breaker = scope.spawn(|| {
                    thread::sleep(Duration::from_millis(20));
                    device.request(&[BREAK, 1])
                });
                expect_error("read() that is broken out of", device.read(24), EAGAIN)?;
                expect_error("read() under BREAK", device.read(24), EAGAIN)?;
                ensure!(!breaker.is_finished(), "BREAK did not wait");
                expect("BREAK off", device.request(&[BREAK, 0]), Ok(16))?;
                let answer = breaker
                    .join()
                    .map_err(|_| anyhow!("the breaker panicked"))?;
                expect("BREAK on", answer, Ok(16))
            })?;
        }
        // Three at once, freed by a fourth that is not the owner.
        thread::scope(|scope| -> Result<()> {
            let breakers: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| device.request(&[BREAK, 1])))
                .collect();
            expect_error("read() under three BREAKs", device.read(24), EAGAIN)?;
            let freed = AtomicBool::new(false);
            let end = Instant::now() + Duration::from_secs(20);
            while breakers.iter().any(|breaker| !breaker.is_finished()) {
                ensure!(Instant::now() < end, "a BREAK waits although it is off");
                let answer = thread::scope(|s| s.spawn(|| device.request(&[BREAK, 0])).join());
                expect(
                    "BREAK off",
                    answer.map_err(|_| anyhow!("panicked"))?,
                    Ok(16),
                )?;
                freed.store(true, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
            for breaker in breakers {
                let answer = breaker.join().map_err(|_| anyhow!("a breaker panicked"))?;
                expect("one of three BREAKs", answer, Ok(16))?;
            }
            Ok(())
        })?;
    }
    // A signal ends the wait and leaves the flag. Before INITIALIZE too.
    let device = &Device::open()?;
    thread::scope(|scope| -> Result<()> {
        let (tell, told) = mpsc::channel();
        let breaker = scope.spawn(move || {
            // The other end waits for this.
            let _ = tell.send(pthread_self());
            device.request(&[BREAK, 1])
        });
        let thread = told.recv()?;
        let end = Instant::now() + Duration::from_secs(20);
        while !breaker.is_finished() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
            // It may have ended between the look and this; it has not been joined.
            let _ = pthread_kill(thread, Signal::SIGUSR1);
        }
        let answer = breaker
            .join()
            .map_err(|_| anyhow!("the breaker panicked"))?;
        expect_error("BREAK with a signal", answer, EINTR)
    })?;
    expect_error(
        "read() without a Guest, under BREAK",
        device.read(24),
        EINVAL,
    )?;
    expect("BREAK off", device.request(&[BREAK, 0]), Ok(16))
}

/// How long the crowd goes on.
const CROWD: Duration = Duration::from_secs(1);

/// The owner runs a Guest while four threads ask for everything all the time.
pub fn crowd(_: &[String]) -> Result<()> {
    let guest = Tiny::new(32, BOUND)?;
    let device = &guest.device;
    let good = guest.memory.load(BOUND);
    let stop = AtomicBool::new(false);
    let (refused, broken) = (AtomicU64::new(0), AtomicU64::new(0));
    let ask = |seed: u64| -> Result<()> {
        let mut random = seed;
        while !stop.load(Ordering::Relaxed) {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            match random >> 60 {
                0..4 => expect_error("INITIALIZE", device.request(&good), EPERM)?,
                4..7 => expect_error("GETDMA", device.request(&[GETDMA, BOUND_KEY]), EPERM)?,
                7..9 => expect_error("IRQ 200", device.request(&[IRQ, 200]), EINVAL)?,
                9 => {
                    expect("IRQ", device.request(&[IRQ, random >> 8 & 63]), Ok(16))?;
                    continue;
                }
                10..13 => expect_error("read()", device.read(24), EPERM)?,
                13 => expect_error("nonsense", device.request(&[random]), EINVAL)?,
                _ => {
                    broken.fetch_add(1, Ordering::Relaxed);
                    expect("BREAK", device.request(&[BREAK, 1]), Ok(16))?;
                    continue;
                }
            }
            refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let mut key = 0;
    thread::scope(|scope| -> Result<()> {
        let crowd: Vec<_> = (1..=4).map(|seed| scope.spawn(move || ask(seed))).collect();
        let run = || -> Result<u64> {
            let end = Instant::now() + CROWD;
            let mut key = 0;
            while Instant::now() < end {
                match guest.next() {
                    Ok(found) => {
                        ensure!(found == key, "key {found} instead of {key}");
                        key += 1;
                        let answer = device.request(&[IRQ, key % 64]);
                        expect("IRQ by the owner", answer, Ok(16))?;
                    }
                    Err(EAGAIN) => expect("BREAK off", device.request(&[BREAK, 0]), Ok(16))?,
                    Err(number) => bail!("the owner's read(): {number}"),
                }
            }
            Ok(key)
        };
        let result = run();
        stop.store(true, Ordering::Relaxed);
        while crowd.iter().any(|thread| !thread.is_finished()) {
            expect("the last BREAK off", device.request(&[BREAK, 0]), Ok(16))?;
            thread::sleep(Duration::from_millis(1));
        }
        for thread in crowd {
            thread
                .join()
                .map_err(|_| anyhow!("one of the crowd panicked"))??;
        }
        key = result?;
        Ok(())
    })?;
    let (refused, broken) = (refused.into_inner(), broken.into_inner());
    println!("note: {key} records, {refused} requests refused, {broken} BREAKs");
    ensure!(
        key > 0 && refused > 0 && broken > 0,
        "nothing happened at the same time"
    );
    guest.expect("after the crowd", key)
}
