// SPDX-License-Identifier: GPL-2.0-only

//! Two hundred Guests of 16 MiB at once, on two processors and two GiB, and what one that has
//! nothing to do costs.

use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::leaks::{give_back, vmstat};
use super::{Bench, NotHere};
use crate::bare::{Alarm, Bare, End, with_module};
use crate::device::{Device, IRQ};
use crate::guest::Guest;
use crate::host;
use crate::tiny::{HALT, Tiny};

/// So many.
const GUESTS: u64 = 200;
/// Their memory.
const MIB: usize = 16;
/// The longest that Linux may take to give back what processes had.
const GIVEN_BACK: Duration = Duration::from_secs(5);
/// So many times in a row there is something left of Guests if there ever is. Linux has its own
/// reasons to take a page for good, such as a table for a part of memory that it has split; it has
/// none to do so for 200 Guests again and again.
const TIMES: usize = 3;
/// Pages of the Host's memory that an idle Guest of a few instructions may have.
const MOST_PAGES: f64 = 48.0;
/// Pages of page tables among them, for a Guest with a kernel.
const MOST_SHADOW: f64 = 40.0;

/// What a Guest makes of a number; as the test Guest does it.
fn answer(number: u64) -> u64 {
    (0..1000).fold(number, |sum, n| {
        sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n)
    })
}

/// Waits until all Guests sleep: nobody has been in or out for half a second.
fn wait_until_idle() -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60) * host::patience();
    while Instant::now() < end {
        let before = host::counter("world_switches")?;
        thread::sleep(Duration::from_millis(500));
        if host::counter("world_switches")? == before {
            return Ok(());
        }
    }
    bail!("there is always one that does not sleep")
}

/// With a Launcher for each.
fn answering(bench: &mut Bench) -> Result<()> {
    let begun = Instant::now();
    let mib = MIB.to_string();
    let mut guests = Vec::new();
    for _ in 0..GUESTS {
        guests.push(Guest::launch(&[&mib, "/guests/probe", "case=answer"])?);
    }
    for (n, guest) in guests.iter().enumerate() {
        guest
            .wait_for("waiting")
            .with_context(|| format!("Guest {n}"))?;
    }
    let alive = host::counter("guests")?;
    ensure!(alive == GUESTS, "{alive} Guests at once, not {GUESTS}");
    for round in 0..2_u64 {
        wait_until_idle()?;
        for (n, guest) in (0..).zip(&mut guests) {
            guest.send(format!("{}\n", 1000 * round + n).as_bytes())?;
        }
        for (n, guest) in (0..).zip(&guests) {
            let number: u64 = 1000 * round + n;
            let wanted = format!("answer {number} is {}\n", answer(number));
            guest
                .wait_for(&wanted)
                .with_context(|| format!("Guest {n}"))?;
        }
    }
    wait_until_idle()?;
    let shadow = host::counter("shadow_pages")? as f64 / GUESTS as f64;
    let free = host::meminfo("MemAvailable")? / 1024;
    let took = begun.elapsed();
    let text = format!(
        "{GUESTS} Guests have answered twice in {took:.0?}; {shadow:.1} shadow pages each; {free} \
         MiB are still free"
    );
    bench.control.say("note", &text)?;
    ensure!(shadow <= MOST_SHADOW, "{text}");
    for mut guest in guests {
        guest.send(b"end\n")?;
        let ended = guest.finish()?;
        ended.expect_code(0)?.expect_output("good: answered 2")?;
    }
    host::wait_until_free()
}

/// Pages of structures smaller than a page, or not much larger.
fn slabs() -> Result<f64> {
    Ok((vmstat("nr_slab_reclaimable")? + vmstat("nr_slab_unreclaimable")?) as f64)
}

/// Pages in use, but for what the process itself has: its memory, and the tables for that.
fn in_use() -> Result<f64> {
    give_back()?;
    let zones = fs::read_to_string("/proc/zoneinfo")?;
    let counts = zones
        .lines()
        .filter_map(|line| line.trim().strip_prefix("count:"))
        .filter_map(|count| count.trim().parse::<u64>().ok());
    let mut free: u64 = counts.sum();
    for kind in ["nr_free_pages", "nr_anon_pages", "nr_page_table_pages"] {
        free += vmstat(kind)?;
    }
    Ok(-(free as f64))
}

/// Runs a Guest until it sleeps, and leaves it so.
fn put_to_sleep(device: &Device) -> Result<()> {
    let _alarm = Alarm::after(Duration::from_millis(20) * host::patience())?;
    let answer = device.read(24);
    ensure!(answer == Err(libc::EINTR), "{answer:?}");
    Ok(())
}

/// Guests that sleep, and nothing else: no process of their own, no thread.
fn memory(bench: &mut Bench) -> Result<()> {
    let sleeping = || -> Result<Tiny> {
        let guest = Tiny::new(MIB << 8, HALT)?;
        put_to_sleep(&guest.device)?;
        Ok(guest)
    };
    // The first of all fills the kernel's stores.
    drop(sleeping()?);
    let mut left = Vec::new();
    while left.last().is_none_or(|left| *left >= 1.0) {
        ensure!(left.len() < TIMES, "{left:.1?} pages are left of each");
        left.push(asleep_and_gone(bench, &sleeping)?);
    }
    Ok(())
}

/// Has so many of them at once, and then none; gives how many pages of each are left.
fn asleep_and_gone(bench: &mut Bench, sleeping: &dyn Fn() -> Result<Tiny>) -> Result<f64> {
    let names = ["shadow_pages", "pinned_pages"];
    let counters = || -> Result<Vec<u64>> { names.iter().map(|n| host::counter(n)).collect() };
    let (before, ours, slab) = (in_use()?, counters()?, slabs()?);
    let guests = (0..GUESTS)
        .map(|_| sleeping())
        .collect::<Result<Vec<_>>>()?;
    let (after, now) = (in_use()?, counters()?);
    let each = (after - before) / GUESTS as f64;
    let slab = (slabs()? - slab) / GUESTS as f64;
    let share = |n: usize| (now[n] - ours[n]) as f64 / GUESTS as f64;
    let text = format!(
        "an idle Guest has {each:.1} pages of the Host's, {:.1} of them its shadow and {slab:.1} in \
         slabs; {:.1} pinned",
        share(0),
        share(1),
    );
    bench.control.say("note", &text)?;
    ensure!(
        share(0) < each && each <= MOST_PAGES && now[1] == ours[1],
        "{text}: at most {MOST_PAGES}, and none pinned"
    );
    drop(guests);
    host::wait_until_free()?;
    // Linux gives back some of what processes had, such as their filters, a while later.
    let begun = Instant::now();
    loop {
        let left = (in_use()? - before) / GUESTS as f64;
        if left < 1.0 || begun.elapsed() > GIVEN_BACK {
            return Ok(left);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

pub fn many(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let have = host::meminfo("MemTotal")? / 1024;
    if have < 1800 || host::cpus() != 2 {
        let text = format!("needs two processors and two GiB, not {have} MiB");
        return Err(NotHere(text).into());
    }
    memory(bench)?;
    answering(bench)
}

/// How long a Guest that sleeps is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// How often a task has been on a processor, and for how many nanoseconds, by Linux's scheduler.
fn times_on_processor(task: &str) -> Result<(u64, Option<u64>)> {
    let status = fs::read_to_string(format!("/proc/{task}/status"))?;
    let switches: Vec<u64> = status
        .lines()
        .filter_map(|line| line.split_once("ctxt_switches:"))
        .filter_map(|(_, count)| count.trim().parse().ok())
        .collect();
    ensure!(switches.len() == 2, "{task}: {switches:?}");
    let nanoseconds = fs::read_to_string(format!("/proc/{task}/schedstat")).ok();
    let nanoseconds = nanoseconds.and_then(|text| text.split(' ').next()?.parse().ok());
    Ok((switches.iter().sum(), nanoseconds))
}

/// One that has halted, for ten seconds: no world is switched, and its task is on no processor.
pub fn idle(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            let guest = scope.spawn(move || -> Result<End> {
                let mut guest = Bare::new()?;
                guest.limit = Duration::from_secs(500);
                guest.call(10, [0; 4]);
                let device = guest.initialize()?;
                let task = fs::read_link("/proc/thread-self")?;
                let task = task.to_str().context("a name")?.to_owned();
                sender.send((Device(device.0.try_clone()?), task))?;
                guest.go_on(&device, |_, _, _| Ok(()))
            });
            let (device, task) = receiver.recv()?;
            wait_until_idle()?;
            let look = || -> Result<_> {
                Ok((host::counter("world_switches")?, times_on_processor(&task)?))
            };
            let before = look()?;
            thread::sleep(WATCHED);
            let after = look()?;
            // Then it is woken, and all of that is seen to count.
            let answer = device.request(&[IRQ, 5]);
            ensure!(answer == Ok(16), "IRQ: {answer:?}");
            let end = guest.join().expect("it does not panic")?;
            ensure!(end == End::Off, "{end:?}");
            let woken = host::counter("world_switches")? - after.0;
            let text = format!(
                "in {WATCHED:?} {} world switches, its task {} times on a processor; {woken} world \
                 switches when it is woken",
                after.0 - before.0,
                after.1.0 - before.1.0,
            );
            bench.control.say("note", &text)?;
            ensure!(before == after, "{text}: {before:?}, {after:?}");
            ensure!(before.1.0 > 0 && woken > 0, "{text}: nothing counts");
            Ok(())
        })
    })
}
