// SPDX-License-Identifier: GPL-2.0-only

//! `/dev/lguest` in any order: see the stand-in of that name for what it does.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::Bench;
use super::guests::{OFF, run, time_to_die};
use super::leaks::{self, Line};
use crate::guest::Guest;
use crate::host;
use crate::random::Random;

/// What the calls have said: the call, what it said, and how often.
type Said = BTreeMap<String, BTreeMap<String, u64>>;

/// Adds up the lines of one run.
fn add(said: &mut Said, output: &str) -> Result<()> {
    for line in output.lines() {
        let Some((name, rest)) = line
            .strip_prefix("said: ")
            .and_then(|line| line.split_once(':'))
        else {
            continue;
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        for pair in words.chunks(2) {
            let [what, count] = pair else { continue };
            let all = said.entry(name.to_owned()).or_default();
            *all.entry((*what).to_owned()).or_default() += count.parse::<u64>()?;
        }
    }
    Ok(())
}

/// How often a call was done, or said something.
fn count(said: &Said, name: &str, what: &str) -> u64 {
    let of_name = said.get(name).and_then(|all| all.get(what));
    of_name.copied().unwrap_or_default()
}

/// One process; every other one is killed somewhere in the middle.
fn one(random: &mut Random, calls: u64, dies: bool, said: &mut Said) -> Result<()> {
    let seed = random.word().to_string();
    let guest = Guest::stand_in(&["fuzz-device", &seed, &calls.to_string()])?;
    let what = || format!("fuzz-device with seed {seed}, {calls} calls");
    if dies {
        guest.wait_for("begun").with_context(what)?;
        thread::sleep(Duration::from_micros(random.below(400_000)));
        // It may have ended by itself.
        let _ = kill(guest.pid(), Signal::SIGKILL);
        guest.finish_within(time_to_die()).with_context(what)?;
    } else {
        let ended = guest.finish().with_context(what)?;
        ended.expect_code(0).with_context(what)?;
        add(said, &ended.output)?;
    }
    host::wait_until_free().with_context(what)
}

pub fn fuzz_device(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let seed = bench.seed();
    let (processes, calls) = if bench.long() { (30, 6000) } else { (4, 1500) };
    let mut random = Random::new(seed);
    let mut said = Said::new();
    let mut series: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut exits = 0;
    for n in 0..processes {
        let before = host::counter("world_switches")?;
        one(&mut random, calls, n % 2 == 1, &mut said)
            .with_context(|| format!("process {n} of seed={seed}"))?;
        exits += host::counter("world_switches")? - before;
        // The first ones fill the kernel's own stores.
        if bench.long() && n >= 10 {
            for (name, value) in leaks::counted()? {
                series.entry(name).or_default().push(value);
            }
        }
    }
    let total: u64 = said.values().flat_map(BTreeMap::values).sum();
    let text = format!("seed={seed}: {total} calls of those that lived, {exits} exits: {said:?}");
    bench.control.say("note", &text)?;
    // It has been deep enough: Guests were made, ran, were interrupted and ended in each way.
    for (name, what) in [
        ("INITIALIZE", "done"),
        ("read", "done"),
        ("read", "EINTR"),
        ("read", "EPERM"),
        ("receive from a socket", "done"),
        ("fork", "done"),
    ] {
        ensure!(count(&said, name, what) > 0, "never: {name}, {what}");
    }
    // What needs a Guest that has come as far as binding records does not come in every run.
    ensure!(
        !bench.long() || count(&said, "GETDMA", "done") > 0,
        "never: GETDMA, done"
    );
    let lines = series
        .iter()
        .filter_map(|(name, values)| Some((name.clone(), leaks::fit(values)?)));
    let lines: BTreeMap<String, Line> = lines.collect();
    if let Some(pages) = lines.get(leaks::PAGES) {
        let text = leaks::tell((&leaks::PAGES.to_owned(), pages));
        bench
            .control
            .say("note", &format!("after each process: {text}"))?;
    }
    let lost: Vec<String> = lines
        .iter()
        .filter(|(_, line)| line.loses())
        .map(leaks::tell)
        .collect();
    ensure!(lost.is_empty(), "every process loses: {}", lost.join(", "));
    run(&["case=hello"])?.expect_code(OFF)?;
    host::wait_until_free()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_added_up() {
        let mut said = Said::new();
        let text = "begun\nsaid: read: done 3 EINTR 4\nsaid: open: done 1\nsaid: poll:\nwell\n";
        add(&mut said, text).expect("as the stand-in writes it");
        add(&mut said, text).expect("as the stand-in writes it");
        assert_eq!(count(&said, "read", "EINTR"), 8);
        assert_eq!(count(&said, "open", "done"), 2);
        assert_eq!(count(&said, "open", "EPERM"), 0);
        assert!(add(&mut said, "said: read: done x").is_err());
    }
}
