// SPDX-License-Identifier: GPL-2.0-only

//! What the module says of a Guest's exits, against what the Guest is known to have done.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Bench;
use crate::bare::{Bare, End, Ring, Trap};
use crate::code;
use crate::guest::{Guest, patience};
use crate::host;

/// The folders of all Guests.
const GUESTS: &str = "/sys/kernel/debug/lguest/guests";
/// The header of a ring.
const HEADER: &str = "exit time-ns reason vector ring rip code address";
/// Numbers of hypercalls.
const FLUSH_ASYNC: u64 = 0;
const SHUTDOWN: u64 = 2;
/// How many of each thing the Guest does.
const CALLS: u64 = 150;
const TRAPS: u64 = 40;

/// The folders of a process's Guests.
pub fn folders(pid: u32) -> Result<Vec<PathBuf>> {
    let begin = format!("{pid}-");
    let mut found = Vec::new();
    for entry in fs::read_dir(GUESTS)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&begin) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The numbers in the file `exits`, by their names.
pub(super) fn numbers(text: &str) -> Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with("reason ")) {
        let (name, rest) = line.split_once(' ').with_context(|| line.to_owned())?;
        let (vector, count) = rest.rsplit_once(' ').unwrap_or(("", rest));
        let name = format!("{name} {vector}").trim().to_owned();
        all.insert(name, count.parse().with_context(|| line.to_owned())?);
    }
    Ok(all)
}

pub fn exits(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let all = host::counter("world_switches")?;
    for recording in [false, true] {
        one(bench, recording).with_context(|| format!("recording {recording}"))?;
    }
    let all = host::counter("world_switches")? - all;
    ensure!(all > 2 * (CALLS + 2 * TRAPS), "{all} world switches in all");
    watched(bench)
}

/// A Guest that makes so many calls and so many traps of two kinds, and what is said of it.
fn one(bench: &mut Bench, recording: bool) -> Result<()> {
    let mut guest = Bare::new()?;
    guest.set_stack();
    for _ in 0..CALLS {
        guest.call(FLUSH_ASYNC, [0; 4]);
    }
    for _ in 0..TRAPS {
        guest.go(Ring::One, code!("ud2"));
        // Comes to the `int3` behind it.
        guest.go(Ring::Three, code!("nop"));
    }
    let before = host::counter("world_switches")?;
    let device = guest.initialize()?;
    let folders = folders(std::process::id())?;
    ensure!(folders.len() == 1, "{folders:?} are there for one Guest");
    let folder = &folders[0];
    let record = folder.join("record");
    if recording {
        fs::write(&record, "1\n")?;
    }
    ensure!(fs::write(&record, "2").is_err(), "2 can be written");
    ensure!(fs::write(&record, "11").is_err(), "11 can be written");
    let said = fs::read_to_string(&record)?;
    ensure!(said == format!("{}\n", u8::from(recording)), "{said:?}");

    let end = guest.go_on(&device, |_, _, _| Ok(()))?;
    ensure!(end == End::Off, "{end:?}");
    let mut kept = File::open(folder.join("exits"))?;
    let mut text = String::new();
    kept.read_to_string(&mut text)?;
    let numbers = numbers(&text)?;
    let number = |name: &str| numbers.get(name).copied().unwrap_or(0);
    let handlers = Bare::usual_handlers().len() as u64;
    let log: Vec<Trap> = guest.log();
    let logged = |vector| log.iter().filter(|trap| trap.vector == vector).count() as u64;
    // INIT, a call for each handler, SET_STACK, the calls, SHUTDOWN.
    for (name, wanted) in [
        ("hypercall 31", 1 + handlers + 1 + CALLS + 1),
        ("invalid-opcode 6", TRAPS),
        ("exception 3", TRAPS),
        ("invalid-opcode 6", logged(6)),
        ("exception 3", logged(3)),
        ("general-protection 13", 0),
        ("switcher -", 0),
    ] {
        ensure!(number(name) == wanted, "{name} is not {wanted}: {text}");
    }
    let by_reason = numbers.iter().filter(|(name, _)| name.contains(' '));
    let sum: u64 = by_reason.map(|(_, count)| count).sum();
    let switches = number("world_switches");
    ensure!(sum == switches, "{sum} exits, {switches} world switches");
    let counted = host::counter("world_switches")? - before;
    ensure!(
        counted == switches,
        "{counted} in all, {switches} of this Guest"
    );
    ensure!(number("page-fault 14") > 0, "no page fault: {text}");
    let pages = host::counter("shadow_pages")?;
    ensure!(
        number("shadow_pages") == pages && pages > 0,
        "not {pages}: {text}"
    );

    let ring = fs::read_to_string(folder.join("ring"))?;
    if recording {
        let lines = ring_is_right(&ring, switches)?;
        ensure!(lines == switches.min(256), "{lines} lines of {switches}");
        let last = ring.lines().last().unwrap_or_default();
        let end = format!(" {SHUTDOWN:#x} -");
        ensure!(
            last.contains(" hypercall 31 1 ") && last.ends_with(&end),
            "{last}"
        );
    } else {
        ensure!(!ring.contains(HEADER), "a ring that nobody wanted: {ring}");
    }
    // The files go with the Guest, and one that is still open touches nothing.
    drop(device);
    ensure!(!folder.exists(), "{} is still there", folder.display());
    kept.seek(SeekFrom::Start(0)).ok();
    let answer = kept.read(&mut [0; 64]);
    ensure!(
        answer.is_err(),
        "the file of a Guest that is gone: {answer:?}"
    );
    let note = format!("recording {recording}: {switches} exits, {pages} shadow pages");
    bench.control.say("note", &note)
}

/// Checks a ring: its header, and lines with numbers one after the other up to `last`, or any if
/// that is 0. Gives how many.
fn ring_is_right(ring: &str, last: u64) -> Result<u64> {
    let mut lines = ring.lines();
    let header = lines.next();
    ensure!(header == Some(HEADER), "{header:?}");
    let (mut count, mut before) = (0, None);
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        ensure!(words.len() == 8, "{line}");
        let number: u64 = words[0].parse().with_context(|| line.to_owned())?;
        let time: u64 = words[1].parse().with_context(|| line.to_owned())?;
        let right = match words[2] {
            "hypercall" => words[3] == "31" && words[4] == "1",
            "page-fault" => words[3] == "14" && words[7].starts_with("0x"),
            "exception" => words[6] == "0x0",
            "interrupt" => words[3].parse::<u64>()? >= 32,
            _ => true,
        };
        ensure!(right && words[5].starts_with("0x"), "{line}");
        if let Some((n, t)) = before {
            // One that was being replaced is left out, which may happen at the beginning only.
            ensure!(number > n && time >= t, "after exit {n} at {t}: {line}");
            ensure!(last == 0 || number == n + 1, "after exit {n}: {line}");
        }
        before = Some((number, time));
        count += 1;
    }
    let end = before.map_or(0, |(number, _)| number);
    ensure!(last == 0 || end == last, "the last is {end}, not {last}");
    Ok(count)
}

/// A Guest that is looked at all the time while it runs, and its ring switched on and off.
fn watched(bench: &mut Bench) -> Result<()> {
    let mut guest = Guest::stand_in(&["sums", "spin", "restart"])?;
    guest.wait_for("running")?;
    let folders = folders(guest.pid().as_raw().cast_unsigned())?;
    ensure!(folders.len() == 1, "{folders:?}");
    let folder = &folders[0];
    let (mut looks, mut lines, mut before) = (0_u64, 0, 0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) || (lines < 1000 && looks < 100_000) {
        fs::write(
            folder.join("record"),
            if looks % 16 == 15 { "0" } else { "1" },
        )?;
        let switches = numbers(&fs::read_to_string(folder.join("exits"))?)?["world_switches"];
        ensure!(switches >= before, "{switches} after {before}");
        before = switches;
        lines += ring_is_right(&fs::read_to_string(folder.join("ring"))?, 0)?;
        looks += 1;
        if looks % 64 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    guest.send(b"x")?;
    guest
        .finish()?
        .expect_code(0)?
        .expect_output("all sums right")?;
    ensure!(!folder.exists(), "{} is still there", folder.display());
    let note = format!("looked {looks} times: {lines} records, {before} exits");
    bench.control.say("note", &note)?;
    host::wait_until_free()
}

/// The folder of the module.
const FOLDER: &str = "/sys/kernel/debug/lguest";

/// Whoever has a file of the module's open holds the module, and one that outlives its Guest
/// touches nothing.
pub fn held_open(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let refused = |when: &str| -> Result<()> {
        let answer = host::unload_module();
        ensure!(answer.is_err(), "{when}: the module could be unloaded");
        Ok(())
    };
    let counters = File::open(format!("{FOLDER}/counters"))?;
    refused("the counters are open")?;
    drop(counters);

    let mut guest = Bare::new()?;
    guest.call(FLUSH_ASYNC, [0; 4]);
    let device = guest.initialize()?;
    let folders = folders(std::process::id())?;
    ensure!(folders.len() == 1, "{folders:?} are there for one Guest");
    let mut open = Vec::new();
    for name in ["exits", "ring", "record"] {
        let mut file = File::open(folders[0].join(name))?;
        // One that has been read and one that has not.
        if name != "ring" {
            file.read_to_string(&mut String::new())?;
        }
        open.push((name, file));
    }
    let end = guest.go_on(&device, |_, _, _| Ok(()))?;
    ensure!(end == End::Off, "{end:?}");
    drop(device);
    ensure!(!folders[0].exists(), "{folders:?} is still there");
    for (name, mut file) in open {
        refused(name)?;
        file.seek(SeekFrom::Start(0)).ok();
        let answer = file.read(&mut [0; 64]);
        ensure!(answer.is_err(), "{name}, its Guest gone: {answer:?}");
    }
    host::wait_until_free()?;
    host::unload_module()?;
    meanwhile(bench)
}

/// Guests come and go, and the module too, while somebody opens and reads all there is.
fn meanwhile(bench: &mut Bench) -> Result<()> {
    let rounds = if bench.long() { 400 } else { 40 };
    let over = AtomicBool::new(false);
    let opening = Mutex::new(());
    let (looks, reloads) = thread::scope(|scope| {
        let reader = scope.spawn(|| look_around(&over, &opening));
        let result = come_and_go(rounds, &opening);
        over.store(true, Ordering::Relaxed);
        let looks = reader.join().expect("the reader does not panic");
        result.map(|reloads| (looks, reloads))
    })?;
    let note =
        format!("{looks} texts read while {rounds} Guests came, and the module {reloads} times");
    bench.control.say("note", &note)?;
    ensure!(looks > 0, "nothing could be read");
    host::load_module()
}

/// Gives how often the module was loaded anew.
fn come_and_go(rounds: u64, opening: &Mutex<()>) -> Result<u64> {
    let mut reloads = 0;
    for round in 0..rounds {
        host::load_module()?;
        let mut guest = Bare::new()?;
        for _ in 0..CALLS {
            guest.call(FLUSH_ASYNC, [0; 4]);
        }
        guest.survive().with_context(|| format!("Guest {round}"))?;
        if round % 4 == 3 {
            // Refused as long as the reader has a file open.
            let end = Instant::now() + patience();
            while let Err(error) = unload(opening) {
                ensure!(Instant::now() < end, "{error:#}");
            }
            reloads += 1;
        }
    }
    Ok(reloads)
}

/// Unloads the module while others open its files, but not until Linux calls it "going".
///
/// Between the moment when `delete_module` has taken the last reference and the one when it says so
/// of the module, whoever opens a file of its in debugfs is told that the module "did not clean up
/// at exit", with a warning. That is a mistake of Linux's, and of no consequence.
fn unload(opening: &Mutex<()>) -> Result<()> {
    thread::scope(|scope| {
        let nobody = opening.lock().expect("nobody panics with it");
        let unloading = scope.spawn(host::unload_module);
        let live = || {
            let state = fs::read_to_string("/sys/module/lguest/initstate");
            state.is_ok_and(|state| state.trim() == "live")
        };
        while live() && !unloading.is_finished() {
            thread::yield_now();
        }
        drop(nobody);
        unloading.join().expect("it does not panic")
    })
}

/// Reads all files that are there, over and over. Gives how many texts there were.
fn look_around(over: &AtomicBool, opening: &Mutex<()>) -> u64 {
    let mut looks = 0;
    while !over.load(Ordering::Relaxed) {
        let guests = fs::read_dir(GUESTS).into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = guests.map(|entry| entry.path()).collect();
        folders.push(FOLDER.into());
        for folder in folders {
            {
                let _one = opening.lock().expect("nobody panics with it");
                fs::write(folder.join("record"), "1").ok();
            }
            let mut text = String::new();
            for name in ["exits", "ring", "record", "counters"] {
                let file = {
                    let _one = opening.lock().expect("nobody panics with it");
                    File::open(folder.join(name))
                };
                let read = file.is_ok_and(|mut file| file.read_to_string(&mut text).is_ok());
                looks += u64::from(read);
            }
        }
    }
    looks
}
