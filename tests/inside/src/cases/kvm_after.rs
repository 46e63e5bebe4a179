// SPDX-License-Identifier: GPL-2.0-only

//! KVM beside us: loaded into a Host that Guests of ours run on already.
//!
//! KVM switches each processor's virtualization on in EFER, a register that our trips change too:
//! what the Host has put into it since our module was loaded must still be there after a trip.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::gettid;

use super::guests::{self, OFF, pin, unpin};
use super::{Bench, NotHere};
use crate::guest::{Guest, patience};
use crate::{host, kvm};

/// EFER, and its bit that allows AMD's instructions for virtual machines.
const EFER: u32 = 0xc000_0080;
const SVME: u64 = 1 << 12;

/// How long Guest and machine take turns in one way.
const TURNS: Duration = Duration::from_millis(1500);
/// And the least of each: trips of the Guest, runs of the machine.
const LEAST: u64 = 50;

/// Which of the two modules leaves first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Ours,
    Kvms,
}

pub fn kvm_after(bench: &mut Bench) -> Result<()> {
    if let Some(missing) = kvm::missing() {
        return Err(NotHere(missing).into());
    }
    for first in [First::Ours, First::Kvms] {
        let result = both(bench, first);
        // Whatever became of it, the cases after this one have the Host to themselves.
        unpin(gettid())?;
        result.with_context(|| format!("{first:?} to be unloaded first"))?;
    }
    // What every case may find: our module there, and nothing held.
    host::load_module()?;
    host::wait_until_free()
}

/// Everything once: our module is loaded first, KVM's later, under a Guest that runs.
fn both(bench: &mut Bench, first: First) -> Result<()> {
    host::load_module()?;
    svme(false, "before KVM is loaded")?;
    let old = working(1)?;
    make_trips(&old)?;
    kvm::load()?;
    // On each processor, once the Guest has been there: a trip puts EFER back.
    for cpu in 0..host::cpus() {
        pin(old.pid(), cpu)?;
        make_trips(&old)?;
    }
    svme(true, "after trips of a Guest older than KVM")?;
    let mut machine = kvm::Sums::new()?;
    let young = working(2)?;
    let mut word = 0;
    for way in [Way::One, Way::Other, Way::Migrating] {
        let (trips, runs) = take_turns(&old, &young, &mut machine, way, &mut word)?;
        let note = format!("{way:?}: {trips} trips of ours, {runs} runs of KVM's");
        bench.control.say("note", &note)?;
        ensure!(trips >= LEAST && runs >= LEAST, "{note}: too few");
        svme(true, "after turns with KVM's machine")?;
    }
    finish(young, 2)?;
    drop(machine);
    match first {
        First::Kvms => {
            kvm::unload()?;
            for cpu in 0..host::cpus() {
                pin(old.pid(), cpu)?;
                make_trips(&old)?;
            }
            // KVM has switched it off, and no trip has switched it on again.
            svme(false, "after KVM was unloaded")?;
            finish(old, 1)?;
            guests::run(&["case=hello"])?.expect_code(OFF)?;
            host::wait_until_free()?;
            host::unload_module()
        }
        First::Ours => {
            finish(old, 1)?;
            host::wait_until_free()?;
            host::unload_module()?;
            // KVM goes on without us.
            svme(true, "after our module was unloaded")?;
            kvm::Sums::new()?.run(3)?;
            kvm::unload()?;
            // And we come back without KVM.
            svme(false, "after KVM was unloaded")?;
            guests::run(&["case=hello"])?.expect_code(OFF)?;
            host::wait_until_free()
        }
    }
}

/// A Guest that computes and makes hypercalls until it is told to stop.
fn working(seed: u32) -> Result<Guest> {
    let guest = Guest::probe(&["case=work", &format!("seed={seed}")])?;
    guest.wait_for(&format!("working with seed {seed}"))?;
    Ok(guest)
}

/// Ends such a Guest, which then says whether all its values were right.
fn finish(mut guest: Guest, seed: u32) -> Result<()> {
    guest.send(b"enough\n")?;
    let says = format!("good: seed {seed}, all values right");
    guest.finish()?.expect_code(OFF)?.expect_output(&says)?;
    Ok(())
}

/// Waits until the Guests that run have made some trips from now on.
fn make_trips(guest: &Guest) -> Result<()> {
    let first = host::counter("world_switches")?;
    let end = Instant::now() + patience();
    while host::counter("world_switches")? < first + LEAST {
        ensure!(
            Instant::now() < end,
            "the Guest of {} makes no trips",
            guest.pid()
        );
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Checks on each processor whether virtualization is on, as KVM wants it.
fn svme(on: bool, when: &str) -> Result<()> {
    for cpu in 0..host::cpus() {
        let efer = host::msr(cpu, EFER)?;
        ensure!(
            (efer & SVME != 0) == on,
            "{when}: EFER of CPU {cpu} is {efer:#x}, and SVME is not {}",
            u8::from(on)
        );
    }
    Ok(())
}

/// Who is where while Guests and machine take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// All on the first processor.
    One,
    /// All on the last.
    Other,
    /// Each on another than a moment ago.
    Migrating,
}

/// Runs the machine again and again, each time with another word, while the Guests work; gives how
/// many trips there were and how many runs.
fn take_turns(
    old: &Guest,
    young: &Guest,
    machine: &mut kvm::Sums,
    way: Way,
    word: &mut u32,
) -> Result<(u64, u64)> {
    let last = host::cpus() - 1;
    let place = |cpu: usize| -> Result<()> {
        pin(old.pid(), cpu)?;
        pin(young.pid(), last - cpu.min(last))?;
        pin(gettid(), cpu)
    };
    match way {
        Way::One | Way::Migrating => place(0)?,
        Way::Other => place(last)?,
    }
    let first = host::counter("world_switches")?;
    let begun = Instant::now();
    let mut runs = 0;
    let trips = loop {
        machine.run(*word)?;
        *word = word.wrapping_mul(77).wrapping_add(1);
        runs += 1;
        if way == Way::Migrating && runs % 8 == 0 {
            place(usize::from(runs % 16 == 0) * last)?;
        }
        // A Guest is told nothing and asks for nothing here: only time lets it run.
        let trips = host::counter("world_switches")? - first;
        let enough = trips >= LEAST && runs >= LEAST && begun.elapsed() >= TURNS;
        if enough || begun.elapsed() >= patience() {
            break trips;
        }
    };
    Ok((trips, runs))
}
