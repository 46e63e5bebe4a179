// SPDX-License-Identifier: GPL-2.0-only

//! What Linux does with a process's memory while a Guest uses it, and the Guest must not notice.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::call;
use crate::tiny::{KEEP, KEPT_ROUNDS, PAGE, TOUCHED, Tiny};

/// Pages of the Guest: some large ones of the processor's among them.
const PAGES: usize = 1536;
/// Page tables, at the memory's end.
const TABLES: usize = 3;
/// `madvise()`: make large pages now.
const MADV_COLLAPSE: usize = 25;
/// How long a kind may take to show that it happens.
const PATIENCE: Duration = Duration::from_secs(100);
/// The shortest time that a kind goes on for.
const WHILE: Duration = Duration::from_millis(500);

/// The usual rest between two steps.
const PAUSE: Duration = Duration::from_millis(1);

/// What Linux is made to do, over and over.
struct Kind {
    name: &'static str,
    /// Once, before.
    begin: fn(&Range) -> Result<()>,
    /// One step of it.
    step: fn(&Range) -> Result<()>,
    /// Once, after.
    end: fn(&Range) -> Result<()>,
    /// How long the Guest rests between its records.
    rest: Duration,
    /// And how long whoever does it rests between two steps.
    pause: Duration,
    /// The numbers of Linux's that show it, and how far each must rise.
    shows: &'static [(&'static str, u64)],
}

/// The memory in question.
struct Range {
    address: usize,
    bytes: usize,
}

impl Range {
    /// What a Guest counts in.
    fn of(guest: &Tiny) -> Self {
        Self {
            address: guest.memory.address() + TOUCHED * PAGE,
            bytes: (PAGES - TABLES - TOUCHED) * PAGE,
        }
    }

    fn advise(&self, advice: usize) -> Result<()> {
        // SAFETY: No advice that is used here changes what the memory holds.
        let done = unsafe { call(libc::SYS_madvise, &[self.address, self.bytes, advice]) };
        done.map_err(|number| anyhow!("madvise({advice}): error {number}"))?;
        Ok(())
    }
}

/// One of the settings of the thread that joins equal pages.
fn set_ksm(name: &str, value: &str) -> Result<()> {
    let path = format!("/sys/kernel/mm/ksm/{name}");
    fs::write(&path, value).context(path)
}

const KINDS: &[Kind] = &[
    Kind {
        name: "swapped out",
        begin: |_| Ok(()),
        step: |range| range.advise(libc::MADV_PAGEOUT as usize),
        end: |_| Ok(()),
        rest: Duration::ZERO,
        pause: PAUSE,
        shows: &[("pswpout", 500)],
    },
    Kind {
        name: "made large, and small again",
        begin: |_| Ok(()),
        step: |range| {
            // It is refused when another thread is at it.
            let _ = range.advise(MADV_COLLAPSE);
            thread::sleep(Duration::from_millis(2));
            range.advise(libc::MADV_PAGEOUT as usize)
        },
        end: |_| Ok(()),
        rest: Duration::ZERO,
        pause: PAUSE,
        shows: &[("thp_collapse_alloc", 2)],
    },
    Kind {
        name: "moved",
        begin: |_| Ok(()),
        step: |range| {
            // Every third page goes and comes back elsewhere, so that there are holes.
            for n in (0..range.bytes / PAGE).step_by(3) {
                let address = range.address + n * PAGE;
                let one = Range {
                    address,
                    bytes: PAGE,
                };
                one.advise(libc::MADV_PAGEOUT as usize)?;
            }
            fs::write("/proc/sys/vm/compact_memory", "1").context("compact_memory")
        },
        end: |_| Ok(()),
        rest: Duration::ZERO,
        pause: PAUSE,
        shows: &[("pgmigrate_success", 20)],
    },
    Kind {
        name: "joined where equal",
        begin: |range| {
            set_ksm("sleep_millisecs", "20")?;
            set_ksm("pages_to_scan", "300")?;
            set_ksm("run", "1")?;
            range.advise(libc::MADV_MERGEABLE as usize)
        },
        step: |_| Ok(()),
        end: |range| {
            set_ksm("run", "0")?;
            range.advise(libc::MADV_UNMERGEABLE as usize)
        },
        rest: Duration::from_millis(500),
        pause: PAUSE,
        shows: &[("cow_ksm", 500)],
    },
    Kind {
        name: "shared with children",
        begin: |_| Ok(()),
        step: |_| {
            // SAFETY: The child does nothing but end.
            match unsafe { nix::unistd::fork() }? {
                // SAFETY: Ends that process only.
                nix::unistd::ForkResult::Child => unsafe { libc::_exit(0) },
                nix::unistd::ForkResult::Parent { child } => {
                    nix::sys::wait::waitpid(child, None)?;
                }
            }
            Ok(())
        },
        end: |_| Ok(()),
        rest: Duration::ZERO,
        pause: Duration::from_millis(20),
        shows: &[],
    },
];

/// One of Linux's numbers.
fn number(name: &str) -> Result<u64> {
    let all = fs::read_to_string("/proc/vmstat")?;
    let found = all
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let found = found.with_context(|| format!("/proc/vmstat has no {name}"))?;
    Ok(found.parse()?)
}

fn numbers(kind: &Kind) -> Result<Vec<u64>> {
    kind.shows.iter().map(|(name, _)| number(name)).collect()
}

/// A Guest counts in every page of its memory while that is done to it.
pub fn lent(_: &[String]) -> Result<()> {
    let guest = Tiny::new(PAGES, KEEP)?;
    for kind in KINDS {
        one_kind(kind, &guest).context(kind.name)?;
    }
    at_rest(&guest).context("a Guest that does not run")
}

fn one_kind(kind: &Kind, guest: &Tiny) -> Result<()> {
    let range = Range::of(guest);
    let before = numbers(kind)?;
    let begun = Instant::now();
    let stop = AtomicBool::new(false);
    let (mut rounds, mut records) = (0, 0_u64);
    (kind.begin)(&range)?;
    let result = thread::scope(|scope| -> Result<()> {
        let changer = scope.spawn(|| -> Result<u64> {
            let mut steps = 0;
            while !stop.load(Ordering::Relaxed) {
                (kind.step)(&range)?;
                steps += 1;
                thread::sleep(kind.pause);
            }
            Ok(steps)
        });
        let result = (|| loop {
            rounds = run(guest)?;
            records += 1;
            thread::sleep(kind.rest);
            let now = numbers(kind)?;
            let mut each = kind.shows.iter().zip(now.iter().zip(&before));
            let shown = each.all(|((_, rise), (now, before))| now - before >= *rise);
            if shown && records > 1 && begun.elapsed() > WHILE {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "it does not happen: {now:?}");
        })();
        stop.store(true, Ordering::Relaxed);
        let joined = changer.join();
        let steps = joined.map_err(|_| anyhow!("the changer panicked"))?;
        result?;
        let (steps, time) = (steps?, begun.elapsed().as_secs_f32());
        println!(
            "note: {}: {steps} steps, {records} records, {time:.1} s",
            kind.name
        );
        Ok(())
    });
    (kind.end)(&range)?;
    result?;
    let after = numbers(kind)?;
    let rises = kind.shows.iter().zip(after.iter().zip(&before));
    for ((name, _), (after, before)) in rises {
        println!("note:   {name} {}", after - before);
    }
    check(guest, rounds)
}

/// Runs the Guest until it says how often it has counted, and looks at its pages.
fn run(guest: &Tiny) -> Result<u64> {
    let next = guest.next();
    let rounds = next.map_err(|number| anyhow!("read(): error {number}"))?;
    ensure!(
        rounds != u64::MAX,
        "the Guest found a page with {}, and it had counted to {}",
        guest.memory.word(1),
        guest.memory.word(3)
    );
    check(guest, rounds)?;
    Ok(rounds)
}

/// Every page has the number that the Guest has counted to.
fn check(guest: &Tiny, rounds: u64) -> Result<()> {
    for page in TOUCHED..PAGES - TABLES {
        let found = guest.memory.read(page * PAGE);
        ensure!(found == rounds, "page {page} has {found}, not {rounds}");
    }
    Ok(())
}

/// How much memory this process has that is there, or in the swap, in pages.
fn pages(which: &str) -> Result<u64> {
    let all = fs::read_to_string("/proc/self/status")?;
    let found = all.lines().find_map(|line| line.strip_prefix(which));
    let found = found.with_context(|| format!("no {which} in /proc/self/status"))?;
    let kib: u64 = found
        .trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()?;
    Ok(kib / 4)
}

/// All that the Guest has written goes to the swap, and it goes on with what comes back.
fn at_rest(guest: &Tiny) -> Result<()> {
    let rounds = run(guest)?;
    let range = Range::of(guest);
    let (before, count) = (pages("VmSwap")?, range.bytes as u64 / PAGE as u64);
    range.advise(libc::MADV_PAGEOUT as usize)?;
    let swapped = pages("VmSwap")? - before;
    ensure!(
        // Now and then one is held by somebody else for a moment.
        swapped >= count / 10 * 9,
        "of the Guest's {count} pages {swapped} went to the swap"
    );
    check(guest, rounds)?;
    let more = run(guest)?;
    ensure!(
        more == rounds + KEPT_ROUNDS,
        "after {rounds} it counted to {more}"
    );
    println!("note: at rest: {swapped} of {count} pages went to the swap");
    Ok(())
}
