// SPDX-License-Identifier: GPL-2.0-only

//! Guests of every kind for as long as one likes, while all is done to them and to the machine that
//! can be done from outside; and whether anything grows.
//!
//! Time goes by in rounds. In each there are three Guests that keep sums (one that computes, one
//! that sleeps by turns, one under the real Launcher) and beside them others that come, go and are
//! killed. Chance chooses what happens next: see [`DEEDS`]. At the end of a round all Guests end,
//! each sum must have been right, and the module is taken out and put in again, which must leave
//! its counters at nothing. Then pages and slab caches are counted as [`super::leaks`] does it, and
//! a line is laid through the rounds.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::device::with_breakpoint;
use super::guests::{CRASHED, KILLED, OFF, pin, run, time_to_die, unpin};
use super::leaks::{self, Line};
use super::leaving::{Three, state};
use super::reclaim::drop_caches;
use super::storm::{self, CAN_GO_ON, CHECK_INTERVAL};
use super::{Bench, unexpected};
use crate::guest::Guest;
use crate::host;
use crate::protocol::Injection;
use crate::random::Random;

/// How long Guests are alive in a round; the counting at its end takes a few seconds more.
const ROUND: Duration = Duration::from_secs(12);
/// Rounds that fill the kernel's own stores, and are in no line.
const WARM: usize = 3;
/// Through fewer rounds no line is judged.
const ENOUGH: usize = 6;
/// What memory pressure leaves, in MiB: little enough for Linux to look for more.
const LEFT: u64 = 40;
const CPU1: &str = "/sys/devices/system/cpu/cpu1/online";

/// What has happened so far, by name.
type Tally = BTreeMap<&'static str, u64>;

/// A soak that is under way.
struct Soak {
    random: Random,
    tally: Tally,
    /// NMIs and machine checks that the Host has counted before.
    nmis: u64,
}

/// Something that is done to the Guests or to the machine, while three Guests keep sums.
type Deed = fn(&mut Soak, &mut Bench, &Three) -> Result<()>;

/// All of them, and how often each comes up.
const DEEDS: &[(&str, u64, Deed)] = &[
    ("NMI", 4, Soak::nmis),
    ("machine check", 3, Soak::machine_checks),
    ("migration", 4, Soak::migrate),
    ("hotplug", 2, Soak::hotplug),
    ("memory pressure", 1, Soak::pressure),
    ("shrinkers", 2, Soak::shrinkers),
    ("signals", 3, Soak::signals),
    ("stop", 2, Soak::stop),
    ("debugger", 1, Soak::debugger),
    ("good end", 4, Soak::good_end),
    ("bad end", 2, Soak::bad_end),
    ("kill", 5, Soak::kill),
    ("fuzz", 1, Soak::fuzz),
];

impl Soak {
    fn count(&mut self, what: &'static str, n: u64) {
        *self.tally.entry(what).or_default() += n;
    }

    /// A burst of NMIs.
    fn nmis(&mut self, bench: &mut Bench, _: &Three) -> Result<()> {
        let count = 20 + self.random.below(100);
        let count = u32::try_from(count)?;
        bench.control.inject(Injection::Nmi { count })
    }

    /// A few machine checks, one after the other, wherever the first processor is.
    fn machine_checks(&mut self, bench: &mut Bench, _: &Three) -> Result<()> {
        for _ in 0..1 + self.random.below(5) {
            storm::machine_check(bench, 0, CAN_GO_ON)?;
            self.count("machine_checks", 1);
        }
        Ok(())
    }

    /// All three to and fro between the processors.
    fn migrate(&mut self, _: &mut Bench, three: &Three) -> Result<()> {
        for _ in 0..50 {
            for pid in three.pids() {
                pin(pid, self.random.below(host::cpus() as u64) as usize)?;
                self.count("migrations", 1);
            }
        }
        three.pids().into_iter().try_for_each(unpin)
    }

    /// A processor is taken away from under a Guest, and comes back.
    fn hotplug(&mut self, _: &mut Bench, three: &Three) -> Result<()> {
        if host::cpus() < 2 {
            return Ok(());
        }
        for pid in three.pids() {
            pin(pid, 1)?;
        }
        fs::write(CPU1, "0").context("CPU 1 does not go")?;
        let gone_on = three.go_on(1);
        fs::write(CPU1, "1").context("CPU 1 does not come back")?;
        gone_on.context("with one processor")?;
        self.count("hotplugs", 1);
        three.pids().into_iter().try_for_each(unpin)
    }

    /// Another process takes nearly all memory there is, and lets go of it.
    fn pressure(&mut self, _: &mut Bench, three: &Three) -> Result<()> {
        let mib = (host::meminfo("MemAvailable")? / 1024).saturating_sub(LEFT);
        let mut hungry = Guest::stand_in(&["hungry", &mib.to_string()])?;
        hungry.wait_for("full")?;
        three.go_on(1).context("with little memory")?;
        hungry.send(b"x")?;
        hungry.finish()?.expect_code(0)?;
        self.count("memory_pressures", 1);
        Ok(())
    }

    /// Linux asks for the shadows' tables.
    fn shrinkers(&mut self, _: &mut Bench, _: &Three) -> Result<()> {
        self.count("shrinkers_asked", 1);
        drop_caches()
    }

    /// Signals to the two that handle them.
    fn signals(&mut self, _: &mut Bench, three: &Three) -> Result<()> {
        let [spin, halt, _] = three.pids();
        for _ in 0..100 {
            let pid = if self.random.below(2) == 0 {
                spin
            } else {
                halt
            };
            kill(pid, Signal::SIGUSR1)?;
            self.count("signals", 1);
        }
        Ok(())
    }

    /// One is stopped for a moment.
    fn stop(&mut self, _: &mut Bench, three: &Three) -> Result<()> {
        let pid = three.pids()[self.random.below(3) as usize];
        kill(pid, Signal::SIGSTOP)?;
        thread::sleep(Duration::from_millis(self.random.below(30)));
        kill(pid, Signal::SIGCONT)?;
        self.count("stops", 1);
        Ok(())
    }

    /// A debugger takes hold of one, and sets a breakpoint.
    fn debugger(&mut self, _: &mut Bench, three: &Three) -> Result<()> {
        use nix::sys::ptrace;
        use nix::sys::wait::{WaitPidFlag, waitpid};
        let [spin, ..] = three.pids();
        ptrace::attach(spin)?;
        waitpid(spin, Some(WaitPidFlag::__WALL))?;
        with_breakpoint(spin)?;
        ptrace::detach(spin, None)?;
        // A stop that was asked for twice may be left over.
        kill(spin, Signal::SIGCONT)?;
        self.count("debuggers", 1);
        Ok(())
    }

    /// A Guest that comes, works and powers off.
    fn good_end(&mut self, _: &mut Bench, _: &Three) -> Result<()> {
        let cases = ["hello", "memory", "tables", "fault", "user", "ring"];
        let case = cases[self.random.below(6) as usize];
        run(&[&format!("case={case}")])?.expect_code(OFF)?;
        self.count("guests", 1);
        Ok(())
    }

    /// A Guest that crashes, or that the Host kills.
    fn bad_end(&mut self, _: &mut Bench, _: &Three) -> Result<()> {
        if self.random.below(2) == 0 {
            run(&["case=crash"])?.expect_code(CRASHED)?;
        } else {
            run(&["case=walls", "beyond=0x100000000"])?.expect_code(KILLED)?;
        }
        self.count("guests", 1);
        Ok(())
    }

    /// A Launcher, or what stands in for it, is killed at any moment.
    fn kill(&mut self, _: &mut Bench, _: &Three) -> Result<()> {
        let names = ["count", "ring", "spin", "halt", "touch", "mirror", "bound"];
        let seed = self.random.word().to_string();
        let guest = match self.random.below(3) {
            0 => Guest::probe(&["case=work"])?,
            1 => Guest::stand_in(&["mortal", &seed])?,
            _ => Guest::stand_in(&["run", names[self.random.below(7) as usize], "256"])?,
        };
        thread::sleep(Duration::from_micros(self.random.below(200_000)));
        // It may have ended by itself.
        let _ = kill(guest.pid(), Signal::SIGKILL);
        guest.finish_within(time_to_die())?;
        self.count("guests", 1);
        self.count("kills", 1);
        Ok(())
    }

    /// A process that does anything with the device.
    fn fuzz(&mut self, _: &mut Bench, _: &Three) -> Result<()> {
        let seed = self.random.word().to_string();
        let ended = Guest::stand_in(&["fuzz-device", &seed, "1000"])?.finish()?;
        ended
            .expect_code(0)
            .with_context(|| format!("fuzz-device with seed={seed}"))?;
        self.count("fuzzed_calls", 1000);
        Ok(())
    }

    /// What the kernel has said must be what it may say.
    fn log(&mut self, bench: &mut Bench) -> Result<()> {
        let records = bench.log.new_records()?;
        self.count("log_lines", records.len() as u64);
        let others = unexpected("soak", &records);
        ensure!(others.is_empty(), "the kernel said:\n{}", others.join("\n"));
        Ok(())
    }

    /// NMIs that have come to the first processor since this was last asked.
    fn new_nmis(&mut self) -> Result<()> {
        let now = host::nmi_count(0)?;
        self.count("nmis", now - self.nmis);
        self.nmis = now;
        Ok(())
    }

    /// One round; when it is over there is no Guest.
    fn round(&mut self, bench: &mut Bench) -> Result<()> {
        let begun = Instant::now();
        let all: u64 = DEEDS.iter().map(|(_, often, _)| often).sum();
        let three = Three::start()?;
        self.count("guests", 3);
        while begun.elapsed() < ROUND {
            let mut which = self.random.below(all);
            let deed = DEEDS.iter().find(|(_, often, _)| {
                let found = which < *often;
                which = which.wrapping_sub(*often);
                found
            });
            let (what, _, deed) = deed.context("one of them")?;
            deed(self, bench, &three).with_context(|| format!("deed: {what}"))?;
            self.log(bench).with_context(|| format!("deed: {what}"))?;
        }
        three.go_on(2)?;
        for pid in three.pids() {
            ensure!(state(pid)? != "T", "one is still stopped");
        }
        let records = three.end()?;
        self.count("sums_right", records.iter().sum());
        // The module counts from the start again when it is loaded again.
        self.count("exits", host::counter("world_switches")?);
        for kind in ["nmi", "mce"] {
            let [name, in_switcher] = match kind {
                "nmi" => ["nmis_in_guest", "nmis_in_switcher"],
                _ => ["machine_checks_in_guest", "machine_checks_in_switcher"],
            };
            self.count(name, host::counter(&format!("{kind}_in_guest"))?);
            self.count(in_switcher, host::counter(&format!("{kind}_in_switcher"))?);
        }
        self.new_nmis()?;
        self.count("rounds", 1);
        Ok(())
    }
}

/// The lines through what was counted after each round, without the first ones.
fn lines(series: &[BTreeMap<String, f64>]) -> BTreeMap<String, Line> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (done, counted) in series.iter().skip(WARM).enumerate() {
        for (name, value) in counted {
            // A cache that came later had no objects before.
            let values = all.entry(name.clone()).or_default();
            values.resize(done, 0.0);
            values.push(*value);
        }
    }
    let line = |(name, values): (String, Vec<f64>)| Some((name, leaks::fit(&values)?));
    all.into_iter().filter_map(line).collect()
}

pub fn soak(bench: &mut Bench) -> Result<()> {
    let seconds = 60 * bench.number("minutes").unwrap_or(1);
    let seed = bench.seed();
    bench.control.say("note", &format!("seed={seed}"))?;
    let interval = fs::read_to_string(CHECK_INTERVAL)?;
    fs::write(CHECK_INTERVAL, "1")?;
    let result = through(bench, seed, Duration::from_secs(seconds));
    // Linux looks at its banks once more, so that nothing is left for another case.
    thread::sleep(Duration::from_secs(2));
    fs::write(CHECK_INTERVAL, interval.trim())?;
    result
}

fn through(bench: &mut Bench, seed: u64, time: Duration) -> Result<()> {
    // Its counters begin at nothing.
    host::load_module()?;
    host::unload_module()?;
    host::load_module()?;
    let begun = Instant::now();
    let mut soak = Soak {
        nmis: host::nmi_count(0)?,
        random: Random::new(seed),
        tally: Tally::new(),
    };
    let mut series = Vec::new();
    let mut result = Ok(());
    while begun.elapsed() < time {
        let round = soak
            .round(bench)
            .and_then(|()| {
                host::wait_until_free()?;
                series.push(leaks::counted()?);
                soak.log(bench)
            })
            .with_context(|| format!("round {} of seed={seed}", series.len()));
        if let Err(error) = round {
            result = Err(error);
            break;
        }
        if series.len() % 10 == 0 {
            let text = format!("{} s: {:?}", begun.elapsed().as_secs(), soak.tally);
            bench.control.say("note", &text)?;
        }
    }
    let lines = lines(&series);
    let seconds = begun.elapsed().as_secs();
    let mut figures = format!("figures: seed={seed} seconds={seconds}");
    for (name, value) in &soak.tally {
        figures += &format!(" {name}={value}");
    }
    if let (Some(pages), Some((_, slab))) = (lines.get(leaks::PAGES), worst(&lines)) {
        figures += &format!(
            " pages_a_round={:.3} pages_error={:.3} slab_caches={} slab_objects_a_round={:.3} \
             slab_error={:.3}",
            pages.slope,
            pages.error,
            lines.len() - 1,
            slab.slope,
            slab.error
        );
    }
    bench.control.say("note", &figures)?;
    result?;
    if series.len() < WARM + ENOUGH {
        let text = format!("{} rounds are too few to tell a slope", series.len());
        return bench.control.say("note", &text);
    }
    let lost: Vec<String> = lines
        .iter()
        .filter(|(_, line)| line.loses())
        .map(leaks::tell)
        .collect();
    ensure!(lost.is_empty(), "every round loses: {}", lost.join(", "));
    Ok(())
}

/// The slab cache that grows the most.
fn worst(lines: &BTreeMap<String, Line>) -> Option<(&String, &Line)> {
    lines
        .iter()
        .filter(|(name, _)| *name != leaks::PAGES)
        .max_by(|a, b| a.1.slope.total_cmp(&b.1.slope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_found_after_the_first_rounds() {
        let round = |n: usize| {
            let steady = if n < WARM { 1000.0 * n as f64 } else { 7.0 };
            let grows = n as f64 * 2.0;
            BTreeMap::from([("steady".into(), steady), ("grows".into(), grows)])
        };
        let series: Vec<_> = (0..WARM + ENOUGH).map(round).collect();
        let lines = lines(&series);
        assert!(!lines["steady"].loses() && lines["grows"].loses());
        assert_eq!(worst(&lines).map(|(name, _)| name.as_str()), Some("grows"));
    }
}
