// SPDX-License-Identifier: GPL-2.0-only

//! Guests that go on until something happens to them, many of them, and large ones.

use std::fs;
use std::io::Read;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libc::{EAGAIN, EINTR, ENOENT};

use crate::device::{GETDMA, IRQ};
use crate::random::Random;
use crate::tiny::{
    BOUND, BOUND_KEY, COUNT, DIE, END_AS, HALT, MIRROR, Memory, Program, RING, SPIN, TOUCH, Tiny,
    last_words, say,
};

/// The programs that never end, by name.
const ENDLESS: [(&str, Program); 7] = [
    ("count", COUNT),
    ("ring", RING),
    ("spin", SPIN),
    ("halt", HALT),
    ("touch", TOUCH),
    ("mirror", MIRROR),
    ("bound", BOUND),
];

/// Runs one of them for ever, or until this process may read something from its input; then says
/// how far it came. Words: which, and how many pages of memory.
pub fn run(words: &[String]) -> Result<()> {
    let [name, pages] = words else {
        bail!("which Guest, and how many pages?");
    };
    let program = ENDLESS.iter().find(|(known, _)| known == name);
    let (_, program) = program.context("no such Guest")?;
    let guest = Tiny::new(pages.parse()?, *program)?;
    let device = guest.device.0.try_clone()?;
    let waker = std::thread::spawn(move || -> Result<()> {
        std::io::stdin().read_exact(&mut [0])?;
        // The reader of this may have ended by then.
        let _ = crate::device::Device(device).request(&[crate::device::BREAK, 1]);
        Ok(())
    });
    println!("running");
    let mut records = 0_u64;
    let result = loop {
        match guest.device.read(24) {
            Ok(_) => records += 1,
            Err(EINTR) => {}
            Err(EAGAIN) => break Ok(()),
            Err(ENOENT) => break Err(anyhow!("it died: {}", last_words(&guest.device)?)),
            Err(number) => break Err(anyhow!("read(): {}", say::<()>(Err(number)))),
        }
    };
    let off = guest.device.request(&[crate::device::BREAK, 0]);
    ensure!(off == Ok(16), "BREAK off: {}", say(off));
    println!("{records} records");
    if result.is_ok() {
        waker.join().map_err(|_| anyhow!("the waker panicked"))??;
    }
    result
}

/// Makes, runs and closes Guests for ever, in an order that hangs on a number: to be killed.
pub fn mortal(words: &[String]) -> Result<()> {
    let seed = words.first().context("which seed?")?.parse()?;
    let mut random = Random::new(seed);
    println!("begun");
    loop {
        let programs = [COUNT, RING, TOUCH, MIRROR, BOUND, DIE, END_AS, SPIN, HALT];
        let program = programs[random.below(9) as usize];
        let pages = 32 << random.below(5);
        let guest = Tiny::new(pages, program)?;
        // Two at a time, now and then, with the second left idle.
        let _second = match random.below(3) {
            0 => Some(Tiny::new(32, COUNT)?),
            _ => None,
        };
        // How END_AS ends; else a limit for TOUCH.
        let word = match random.below(4) {
            0 => 0x4000_0000 + (pages as u64 - 3) * 4096,
            how => how,
        };
        guest.memory.set_word(0, word);
        for _ in 0..random.below(200) {
            if random.below(5) == 0 {
                // Either may be refused, and the Guest be over.
                let _ = guest.device.request(&[IRQ, random.below(64)]);
                let _ = guest.device.request(&[GETDMA, BOUND_KEY]);
            }
            if guest.next().is_err() {
                break;
            }
        }
    }
}

/// A Guest that wants much memory, and is the first that the kernel takes it from. Words: MiB for
/// the Guest, at most 1024, and MiB that its Launcher fills before.
pub fn big(words: &[String]) -> Result<()> {
    let [mib, before] = words else {
        bail!("how many MiB, and how many before?");
    };
    let mib: usize = mib.parse()?;
    ensure!(mib <= 1024, "{mib} MiB do not fit into its page tables");
    fs::write("/proc/self/oom_score_adj", "1000")?;
    let filled = vec![1_u8; before.parse::<usize>()? << 20];
    std::hint::black_box(&filled);
    let guest = Tiny::new(mib * 256, TOUCH)?;
    println!("running");
    loop {
        match guest.next() {
            Ok(_) | Err(EINTR) => {}
            Err(ENOENT) => bail!("it died: {}", last_words(&guest.device)?),
            Err(number) => bail!("read(): {}", say::<()>(Err(number))),
        }
    }
}

/// A hundred Guests of one task, by turns; nine of ten then end in different ways, in the middle.
pub fn hundred(_: &[String]) -> Result<()> {
    let mut guests = Vec::new();
    for _ in 0..100 {
        guests.push(Tiny::within(Memory::new(32)?, COUNT)?);
    }
    let counted = crate::host::counter("guests")?;
    ensure!(counted == 100, "{counted} Guests, not a hundred");
    for round in 0..20 {
        for (n, guest) in guests.iter().enumerate() {
            guest.expect(&format!("Guest {n}"), round)?;
        }
    }
    let mut n = 0;
    guests.retain(|_| {
        n += 1;
        n % 10 == 0
    });
    for round in 20..40 {
        for guest in &guests {
            guest.expect("one of the ten that are left", round)?;
        }
    }
    let counted = crate::host::counter("guests")?;
    ensure!(counted == 10, "{counted} Guests, not ten");
    Ok(())
}
