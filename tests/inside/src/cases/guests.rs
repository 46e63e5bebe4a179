// SPDX-License-Identifier: GPL-2.0-only

//! Cases that run the test Guest once or a few times and look at what it says.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{Bench, unexpected};
use crate::guest::{Ended, Guest};
use crate::host;

/// Exit status of the Launcher: the Guest powered off.
pub const OFF: i32 = 0;
/// The Guest asked for a restart, and that was not wanted.
pub const RESTART: i32 = 4;
/// The Guest crashed.
pub const CRASHED: i32 = 5;
/// The Host killed it, or the Launcher found it out.
pub const KILLED: i32 = 6;

/// Runs the test Guest with these words to its end.
///
/// # Errors
///
/// When it does not end.
pub fn run(words: &[&str]) -> Result<Ended> {
    host::load_module()?;
    Guest::probe(words)?.finish()
}

/// Runs one of its cases, which must go well; then nothing of it may be left.
fn good(words: &[&str], says: &str) -> Result<()> {
    let ended = run(words)?;
    ended
        .expect_code(OFF)?
        .expect_output(&format!("good: {says}"))?;
    host::wait_until_free()
}

pub fn hello(_: &mut Bench) -> Result<()> {
    good(&["case=hello"], "hello from ring 1")
}

pub fn hypercalls(_: &mut Bench) -> Result<()> {
    good(
        &["case=hypercalls", "rounds=10000"],
        "10000 hypercalls, every register as before",
    )
}

pub fn fault(_: &mut Bench) -> Result<()> {
    good(&["case=fault"], "faults resolved and delivered")
}

pub fn traps(_: &mut Bench) -> Result<()> {
    good(&["case=traps"], "every trap came as it should")
}

pub fn privileged(_: &mut Bench) -> Result<()> {
    good(
        &["case=privileged"],
        "nothing that is forbidden went through",
    )
}

pub fn user(_: &mut Bench) -> Result<()> {
    good(&["case=user"], "ring 3 stays where it is")
}

pub fn walls(bench: &mut Bench) -> Result<()> {
    let ended = run(&["case=walls"])?;
    ended
        .expect_code(OFF)?
        .expect_output("good: ring 1 stays where it is")?;
    bench
        .control
        .say("note", ended.output.lines().next().unwrap_or_default())?;
    // Entries that lead out of memory: just beyond it and the page of descriptors behind it, at
    // the Host's first megabyte of real memory if addresses were taken for real ones, and at the
    // highest frame there can be.
    for beyond in ["0x1001000", "0x100000000", "0xffffffffff000"] {
        let ended = run(&["case=walls", &format!("beyond={beyond}")])?;
        ended
            .expect_code(KILLED)?
            .expect_error("the Host killed the Guest")?;
    }
    host::wait_until_free()
}

pub fn memory(_: &mut Bench) -> Result<()> {
    good(&["case=memory"], "")
}

pub fn tables(_: &mut Bench) -> Result<()> {
    good(&["case=tables"], "the tables were followed")
}

pub fn ring(_: &mut Bench) -> Result<()> {
    good(&["case=ring"], "the ring was drained in order")
}

pub fn ports(_: &mut Bench) -> Result<()> {
    good(&["case=ports"], "ports read as all ones")
}

pub fn endings(_: &mut Bench) -> Result<()> {
    run(&["case=off"])?.expect_code(OFF)?;
    run(&["case=crash"])?
        .expect_code(CRASHED)?
        .expect_error("as I was told")?;
    run(&["case=panic"])?
        .expect_code(CRASHED)?
        .expect_error("as I was told")?;
    let restart = ["--no-restart", "16", "/guests/probe", "case=restart"];
    Guest::launch(&restart)?.finish()?.expect_code(RESTART)?;
    host::wait_until_free()
}

/// How long a killed Launcher may take to be gone.
pub fn time_to_die() -> Duration {
    Duration::from_secs(60) * host::patience()
}

/// The processor time that a task has used, in clock ticks of which 100 are a second.
fn ticks(pid: Pid) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat"))?;
    // The name before the fields is in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(") ").context("no name in stat")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// Only one processor for a task.
pub fn pin(pid: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(pid, &set)?;
    Ok(())
}

/// Any of the machine's processors for a task.
pub fn unpin(pid: Pid) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in 0..host::cpus() {
        set.set(cpu)?;
    }
    sched_setaffinity(pid, &set)?;
    Ok(())
}

pub fn spin(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let guest = Guest::probe(&["case=spin"])?;
        guest.wait_for("spinning")?;
        pin(guest.pid(), 0)?;
        let switches = host::counter("world_switches")?;
        let before = ticks(guest.pid())?;
        // A program beside it, on the same processor.
        let beside = thread::spawn(|| -> Result<u64> {
            let me = nix::unistd::gettid();
            pin(me, 0)?;
            let end = Instant::now() + Duration::from_secs(3);
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            let stat = std::fs::read_to_string("/proc/thread-self/stat")?;
            let (_, rest) = stat.rsplit_once(") ").context("no name in stat")?;
            let fields: Vec<&str> = rest.split(' ').collect();
            Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
        });
        let beside = beside
            .join()
            .map_err(|_| anyhow::anyhow!("the program beside panicked"))??;
        let spun = ticks(guest.pid())? - before;
        let switches = host::counter("world_switches")? - switches;
        bench.control.say(
            "note",
            &format!("ticks: {spun} and {beside}, {switches} switches"),
        )?;
        ensure!(
            beside >= 30,
            "the program beside had {beside} ticks of 300, the Guest {spun}"
        );
        ensure!(
            spun >= 30,
            "the Guest had {spun} ticks of 300, the program beside {beside}"
        );
        ensure!(
            switches >= 30,
            "only {switches} world switches: who preempts it?"
        );

        // Passed on, or the end of both.
        nix::sys::signal::kill(guest.parent(), signal)?;
        let ended = guest.finish_within(time_to_die())?;
        ended.expect_code(128 + signal as i32)?;
        host::wait_until_free()?;
    }
    Ok(())
}

pub fn killed(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    for _ in 0..5 {
        let guest = Guest::probe(&["case=work"])?;
        guest.wait_for("working")?;
        ensure!(
            host::counter("shadow_pages")? > 0,
            "a Guest that runs has no shadow"
        );
        guest.signal(Signal::SIGKILL)?;
        guest
            .finish_within(time_to_die())?
            .expect_code(128 + Signal::SIGKILL as i32)?;
        host::wait_until_free()?;
    }
    good(&["case=hello"], "hello")
}

pub fn two(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let start = |seed| Guest::probe(&["case=work", &format!("seed={seed}")]);
    let mut guests = [(start(1001)?, 1001), (start(2002)?, 2002)];
    for (guest, seed) in &guests {
        guest.wait_for(&format!("working with seed {seed}"))?;
    }
    let alive = host::counter("guests")?;
    ensure!(alive == 2, "{alive} Guests instead of two at once");
    // Both on one processor, so that they take turns on the Switcher's pages, and then anywhere.
    for (guest, _) in &guests {
        pin(guest.pid(), host::cpus() - 1)?;
    }
    thread::sleep(Duration::from_secs(2));
    for (guest, _) in &guests {
        unpin(guest.pid())?;
    }
    thread::sleep(Duration::from_secs(1));
    for (guest, _) in &mut guests {
        guest.send(b"enough\n")?;
    }
    for (guest, seed) in guests {
        let ended = guest.finish()?;
        ended.expect_code(OFF)?;
        ended.expect_output(&format!("good: seed {seed}, all values right"))?;
        bench
            .control
            .say("note", ended.output.lines().last().unwrap_or_default())?;
    }
    host::wait_until_free()
}

/// Types three lines, each after the answer to the one before.
fn typed(case: &str) -> Result<()> {
    host::load_module()?;
    let mut guest = Guest::probe(&[&format!("case={case}")])?;
    guest.wait_for("waiting")?;
    for line in ["one", "two", "three"] {
        thread::sleep(Duration::from_millis(50));
        guest.send(format!("{line}\n").as_bytes())?;
        guest.wait_for(&format!("got {line:?}"))?;
    }
    guest
        .finish()?
        .expect_code(OFF)?
        .expect_output("good: 3 interrupts")?;
    host::wait_until_free()
}

pub fn input_spinning(_: &mut Bench) -> Result<()> {
    typed("console-spin")
}

pub fn input_halting(_: &mut Bench) -> Result<()> {
    typed("console-halt")
}

pub fn input_blocked(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    let mut guest = Guest::probe(&["case=console-blocked"])?;
    guest.wait_for("waiting")?;
    guest.send(b"one\n")?;
    let ended = guest.finish()?;
    ended
        .expect_code(OFF)?
        .expect_output("good: an interrupt waited until it was wanted")?;
    host::wait_until_free()
}

pub fn bad_record(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    let mut guest = Guest::probe(&["case=bad-record"])?;
    guest.wait_for("waiting")?;
    guest.send(b"one\n")?;
    let ended = guest.finish()?;
    ended.expect_code(KILLED)?.expect_error("the Guest sent")?;
    ensure!(!ended.output.contains("bad:"), "{}", ended.said());
    host::wait_until_free()
}

pub fn reload(bench: &mut Bench) -> Result<()> {
    for round in 0..20 {
        host::load_module()?;
        run(&["case=hello"])?
            .expect_code(OFF)?
            .expect_output("good: hello")?;
        host::wait_until_free().with_context(|| format!("round {round}"))?;
        host::unload_module().with_context(|| format!("round {round}"))?;
        ensure!(
            !Path::new(host::DEVICE).exists(),
            "round {round}: the device is still there"
        );
        let records = bench.log.new_records()?;
        let last = "unloaded, guests 0, pinned pages 0, shadow pages 0";
        let said = records.iter().any(|record| record.text.contains(last));
        ensure!(
            said,
            "round {round}: the module did not say {last:?} but {records:?}"
        );
        let others = unexpected("reload", &records);
        ensure!(others.is_empty(), "round {round}: {others:?}");
    }
    host::load_module()?;
    // A module in use does not go.
    let guest = Guest::probe(&["case=spin"])?;
    guest.wait_for("spinning")?;
    ensure!(
        host::unload_module().is_err(),
        "the module was unloaded under a Guest"
    );
    guest.signal(Signal::SIGKILL)?;
    guest.finish_within(time_to_die())?;
    host::wait_until_free()
}
