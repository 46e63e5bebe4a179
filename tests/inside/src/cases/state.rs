// SPDX-License-Identifier: GPL-2.0-only

//! The Host's own state round the trips of a hostile Guest, and whether a difference is noticed.
//!
//! The comparison is made by the checked build of the module. With the ordinary one the hostile
//! Guest runs all the same: then what is shown is that the Host lives on.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::guests::{KILLED, OFF, pin, unpin};
use super::{Bench, NotHere, unexpected};
use crate::guest::{Guest, patience};
use crate::host;
use crate::protocol::Injection;

/// Trips in an ordinary run, and in the long set of the checked module.
const TRIPS: u64 = 50_000;
const MANY_TRIPS: u64 = 1_000_000;

/// The file of the checked module with which a part of the state is spoiled.
const DISTURB: &str = "/sys/kernel/debug/lguest/disturb";

/// What the checked module has found so far; nothing with the ordinary one.
fn differences() -> Result<Option<u64>> {
    Ok(host::counters()?.get("state_differences").copied())
}

/// The hostile Guest, moved from processor to processor and hit by NMIs, until the world has been
/// switched so many times.
pub fn state(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let checked = differences()?;
    let many = bench.long() && checked.is_some();
    let wanted = bench
        .number("trips")
        .unwrap_or(if many { MANY_TRIPS } else { TRIPS });
    let nmis = host::nmi_count(0)?;
    let begun = Instant::now();
    let first = host::counter("world_switches")?;
    let mut guest = Guest::probe(&["case=state"])?;
    guest.wait_for("turmoil")?;
    let mut trips = 0;
    let mut turn = 0;
    while trips < wanted && guest.alive()? && begun.elapsed() < 2 * patience() {
        // QEMU gives NMIs to the first processor only, so the Guest is there two times in three.
        match turn % 24 {
            0 => pin(guest.pid(), 0)?,
            16 => unpin(guest.pid())?,
            20 if host::cpus() > 1 => pin(guest.pid(), 1)?,
            _ => {}
        }
        turn += 1;
        bench.control.inject(Injection::Nmi { count: 1 })?;
        thread::sleep(Duration::from_millis(10));
        trips = host::counter("world_switches")? - first;
    }
    let seconds = begun.elapsed().as_secs_f32();
    if guest.alive()? {
        guest.send(b"enough\n")?;
    }
    let ended = guest.finish()?;
    ended.expect_code(OFF)?.expect_output("good: ")?;
    let nmis = host::nmi_count(0)? - nmis;
    let traps: Vec<_> = ended
        .output
        .lines()
        .filter_map(|line| line.strip_prefix("trap "))
        .collect();
    let traps = traps.join(", ");
    let note = format!("{trips} trips in {seconds:.0} s with {nmis} NMIs; traps {traps}");
    bench.control.say("note", &note)?;
    ensure!(trips >= wanted, "{trips} trips of {wanted}");
    ensure!(nmis > 0, "no NMI came");
    let found = differences()?;
    ensure!(
        found == checked,
        "the Host's state has changed: {checked:?} differences before, {found:?} now"
    );
    host::wait_until_free()
}

/// Parts of the state that every processor has and that can be spoiled.
const KNOWN: [&str; 30] = [
    "CR0",
    "CR3",
    "CR4",
    "CR8",
    "EFER",
    "SYSENTER_CS",
    "STAR",
    "LSTAR",
    "SFMASK",
    "FS base",
    "GS base",
    "KERNEL_GS_BASE",
    "SS",
    "DS",
    "ES",
    "FS",
    "GS",
    "LDTR",
    "GDT base",
    "GDT limit",
    "IDT limit",
    "GDT entry 8",
    "DR0",
    "DR7",
    "RFLAGS",
    "x87 control word",
    "MXCSR",
    "XMM0 low",
    "XMM15 high",
    "stack canary",
];

/// Each part of the Host's state, spoiled once: it must be found by its name, put back, and the
/// Guest must be killed for it.
pub fn disturbed(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let Some(first) = differences()? else {
        // A word on the kernel's command line that it does not know is in our environment.
        ensure!(
            std::env::var("module").as_deref() != Ok("checked"),
            "the checked module was expected, and this is not it"
        );
        return Err(NotHere("the module is not the checked one".to_owned()).into());
    };
    let names = fs::read_to_string(DISTURB).context("no list of what can be spoiled")?;
    let names: Vec<_> = names.lines().collect();
    for known in KNOWN {
        ensure!(names.contains(&known), "{known} is not among {names:?}");
    }
    ensure!(
        fs::write(DISTURB, "CR9\n").is_err(),
        "something that is not there can be spoiled"
    );
    for (found, name) in (first..).zip(&names) {
        spoil(bench, name).with_context(|| format!("{name} was spoiled"))?;
        let now = differences()?;
        ensure!(
            now == Some(found + 1),
            "{name} was spoiled, and {found} differences became {now:?}"
        );
    }
    let note = format!("{} parts were spoiled and found", names.len());
    bench.control.say("note", &note)?;
    // The Host is none the worse.
    let ended = super::guests::run(&["case=hypercalls", "rounds=100"])?;
    ended.expect_code(OFF)?;
    host::wait_until_free()
}

/// Spoils one part under a Guest that works, and looks for its name in all the right places.
fn spoil(bench: &mut Bench, name: &str) -> Result<()> {
    let guest = Guest::probe(&["case=work"])?;
    guest.wait_for("working")?;
    let early = unexpected("disturbed", &bench.log.new_records()?);
    ensure!(early.is_empty(), "before anything was spoiled: {early:?}");
    fs::write(DISTURB, format!("{name}\n"))?;
    let ended = guest.finish()?;
    let wanted = format!("the Host's {name} changed from ");
    ended.expect_code(KILLED)?.expect_error(&wanted)?;
    host::wait_until_free()?;
    let records = bench.log.new_records()?;
    let said = unexpected("disturbed", &records);
    let [line] = &said[..] else {
        anyhow::bail!("one line in the log was expected, not {said:?}");
    };
    ensure!(
        line.starts_with(&format!("lguest: {wanted}")),
        "the log says {line:?}"
    );
    Ok(())
}
