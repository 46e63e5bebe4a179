// SPDX-License-Identifier: GPL-2.0-only

//! Memory that goes away, memory that is gone, and signals where they are not expected.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libc::{EINTR, ENOENT};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::ftruncate;

use super::memory::{PAGES, change, map, memory_file};
use super::{expect, in_child};
use crate::device::Device;
use crate::random::Random;
use crate::tiny::{COUNT, Memory, PAGE, TOUCH, TOUCHED, Tiny, last_words, say};

/// Takes so many MiB, all written to, says so, and gives them back when it may read something. It
/// is the first that the kernel ends if that was too much.
pub fn hungry(words: &[String]) -> Result<()> {
    let mib: usize = words.first().context("how many MiB?")?.parse()?;
    std::fs::write("/proc/self/oom_score_adj", "1000")?;
    let taken = vec![1_u8; mib << 20];
    std::hint::black_box(&taken);
    println!("full");
    std::io::stdin().read_exact(&mut [0])?;
    Ok(())
}

/// What can be done to a piece of memory.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Unmapped,
    ReadOnly,
    NoAccess,
    Truncated,
    /// New pages take the place of the old ones, and a Guest that only adds to them goes on.
    Forgotten,
    /// The same for a file.
    Punched,
}

impl Loss {
    /// Does it to some of the pages.
    fn befall(self, memory: &Memory, file: Option<&OwnedFd>, pages: (usize, usize)) -> Result<()> {
        match (self, file) {
            (Self::Unmapped, _) => change(libc::SYS_munmap, memory, pages, 0),
            (Self::ReadOnly, _) => change(libc::SYS_mprotect, memory, pages, libc::PROT_READ),
            (Self::NoAccess, _) => change(libc::SYS_mprotect, memory, pages, libc::PROT_NONE),
            (Self::Forgotten, _) => change(libc::SYS_madvise, memory, pages, libc::MADV_DONTNEED),
            (Self::Punched, _) => change(libc::SYS_madvise, memory, pages, libc::MADV_REMOVE),
            (Self::Truncated, Some(file)) => Ok(ftruncate(file, (pages.0 * PAGE) as i64)?),
            (Self::Truncated, None) => bail!("no file to cut off"),
        }
    }

    /// Whether a Guest that uses these pages can go on.
    fn harmless(self) -> bool {
        matches!(self, Self::Forgotten | Self::Punched)
    }
}

/// Guests that add to every page they have, from which some are taken at a moment that chance
/// chooses. Words: the seed, and how many Guests.
pub fn memory_taken(words: &[String]) -> Result<()> {
    let [seed, guests] = words else {
        bail!("which seed, and how many Guests?");
    };
    let (seed, guests): (u64, u64) = (seed.parse()?, guests.parse()?);
    let mut random = Random::new(seed);
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    for n in 0..guests {
        let (loss, end) = one_taken(&mut random).with_context(|| format!("Guest {n}"))?;
        *ends.entry(format!("{loss:?}: {end}")).or_default() += 1;
    }
    for (end, count) in ends {
        println!("note: {count} times {end}");
    }
    Ok(())
}

/// One of them; gives what was done, and how the Guest ended.
fn one_taken(random: &mut Random) -> Result<(Loss, String)> {
    let shared = random.below(2) == 0;
    let file = if shared { Some(memory_file()?) } else { None };
    let memory = match &file {
        Some(file) => map(file.as_raw_fd(), libc::MAP_SHARED, PAGES)?,
        None => Memory::new(PAGES)?,
    };
    let losses = match shared {
        true => [
            Loss::Unmapped,
            Loss::ReadOnly,
            Loss::NoAccess,
            Loss::Truncated,
            Loss::Punched,
        ],
        false => [
            Loss::Unmapped,
            Loss::ReadOnly,
            Loss::NoAccess,
            Loss::Forgotten,
            Loss::Forgotten,
        ],
    };
    let loss = losses[random.below(5) as usize];
    // Pages that the Guest counts in; without its tables, which are at the end, where it shall live.
    let first = TOUCHED as u64 + random.below(16);
    let last = first + 1 + random.below(8);
    let pages = (first as usize, last as usize);
    let guest = Tiny::within(memory, TOUCH)?;
    let wait = Duration::from_micros(random.below(3000));
    let end = thread::scope(|scope| -> Result<String> {
        let guest = &guest;
        let taker = scope.spawn(move || {
            thread::sleep(wait);
            loss.befall(&guest.memory, file.as_ref(), pages)
        });
        let mut after = 0;
        let end = loop {
            match guest.next() {
                Ok(_) if taker.is_finished() && after == 5 => break "goes on".to_owned(),
                Ok(_) => after += u64::from(taker.is_finished()),
                Err(ENOENT) => break last_words(&guest.device)?,
                Err(number) => bail!("{loss:?}: read() says {}", say::<()>(Err(number))),
            }
        };
        taker.join().map_err(|_| anyhow!("the taker panicked"))??;
        Ok(end)
    })?;
    ensure!(
        (end == "goes on") == loss.harmless(),
        "{loss:?} of the pages {pages:?} after {wait:?}: {end}"
    );
    // The page is another one each time.
    let end = end.split_once("0x").map_or(end.as_str(), |(start, rest)| {
        let address = rest.chars().take_while(char::is_ascii_hexdigit).count();
        if loss.harmless() {
            start
        } else {
            rest[address..].trim_start_matches([' ', ':', ')'])
        }
    });
    Ok((loss, end.to_owned()))
}

extern "C" fn nothing(_: libc::c_int) {}

/// INITIALIZE, again and again in a process that never did it before, while a signal comes that asks
/// for what it interrupts to go on. Words: the seed, and how often.
pub fn initialize_signals(words: &[String]) -> Result<()> {
    let [seed, times] = words else {
        bail!("which seed, and how often?");
    };
    let (seed, times): (u64, u64) = (seed.parse()?, times.parse()?);
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: The handler does nothing.
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    let mut random = Random::new(seed);
    for n in 0..times {
        let wait = random.below(1500);
        in_child(&format!("INITIALIZE {n}, a signal after {wait} us"), || {
            let memory = Memory::new(PAGES)?;
            let device = Device::open()?;
            let words = memory.load(COUNT);
            once(wait.cast_signed() + 1)?;
            let answer = device.request(&words);
            once(0)?;
            if answer == Err(EINTR) {
                bail!("INITIALIZE: {}", say(answer));
            }
            expect("INITIALIZE", answer, Ok(56))?;
            match device.next_key() {
                Ok(0) => Ok(()),
                other => bail!("the Guest sent {}", say(other)),
            }
        })?;
    }
    Ok(())
}

/// One SIGALRM after so many microseconds; none for 0.
fn once(microseconds: i64) -> Result<()> {
    let timer = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        it_value: libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        },
    };
    // SAFETY: The call reads the structure, and writes nothing with a null pointer.
    let set = unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
    ensure!(set == 0, "setitimer(): {}", std::io::Error::last_os_error());
    Ok(())
}
