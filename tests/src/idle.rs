// SPDX-License-Identifier: GPL-2.0-only

//! What a Guest that does nothing costs, in instructions of the whole machine for each second.
//!
//! QEMU counts with a plugin of ours, `tests/counter`, and the case `idle-counted` says which
//! stretches of time lie between the counter's marks.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use inside::cases::idle_counted::MARK;

use crate::artifacts::{self, Artifacts};
use crate::machine::{Machine, Settings};
use crate::trip::{self, BOOT};

/// What a Guest that has halted may cost in a second, in instructions.
pub const AT_MOST: f64 = 2_000.0;
/// What one that is woken once each second costs at least: if that is not seen, nothing is.
const WOKEN_AT_LEAST: f64 = 3_000.0;
/// By how much the counter and the machine's own clock may differ while the machine computes: the
/// marks are not at the same instructions as the readings of the clock.
const NEAR: f64 = 0.001;

/// Instructions in a second, in each of the stretches of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    /// Without a Guest.
    pub without: Vec<f64>,
    /// With one that has halted.
    pub halted: Vec<f64>,
    /// With one that sets its timer for a second, again and again.
    pub woken: Vec<f64>,
}

/// The least and the most of some numbers.
fn range(numbers: &[f64]) -> (f64, f64) {
    let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let most = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (least, most)
}

impl Counted {
    /// The figure: what the dearest stretch with a Guest costs above the cheapest without. All
    /// noise is in it, so the Guest costs at most that.
    pub fn at_most(&self) -> f64 {
        (range(&self.halted).1 - range(&self.without).0).max(0.0)
    }

    /// The noise in that: how far stretches without a Guest are from each other.
    pub fn noise(&self) -> f64 {
        let (least, most) = range(&self.without);
        most - least
    }

    /// What a Guest costs that is woken each second.
    pub fn woken(&self) -> f64 {
        range(&self.woken).0 - range(&self.without).1
    }
}

/// The plugin, built if need be.
fn counter() -> Result<PathBuf> {
    Ok(artifacts::build("lguest-counter")?.join("liblguest_counter.so"))
}

/// Has it counted.
///
/// # Errors
///
/// When something that is needed is not built, the case fails, or the count cannot be right.
pub fn count() -> Result<Counted> {
    let artifacts = Artifacts::collect()?;
    artifacts.complete()?;
    let log = artifacts::log_directory()?.join("bench-idle.log");
    let marks = tempfile::NamedTempFile::new()?;
    let mut settings = Settings::new(&artifacts.kernel, artifacts.pack()?, &log);
    settings.count_instructions = true;
    let (plugin, out) = (counter()?, marks.path().display());
    settings.plugin = Some(format!("{},mark={MARK},out={out}", plugin.display()));
    let mut machine = Machine::start(&settings)?;
    machine.wait_until_ready(BOOT)?;
    let notes = trip::run(&mut machine, "idle-counted")?;
    machine.quit(Duration::from_secs(60))?;
    evaluate(&notes, marks.path())
}

/// Puts together what was said inside, and what was counted outside.
fn evaluate(notes: &[String], marks: &Path) -> Result<Counted> {
    let text = fs::read_to_string(marks)?;
    let counts: Vec<u64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    let windows: Vec<_> = notes
        .iter()
        .filter_map(|n| n.strip_prefix("window "))
        .collect();
    ensure!(
        counts.len() == 2 * windows.len() && !windows.is_empty(),
        "{} marks for {} windows",
        counts.len(),
        windows.len()
    );
    let mut all = Counted::default();
    for (window, marks) in windows.iter().zip(counts.chunks(2)) {
        let (what, time) = window.split_once(' ').context("a window without a time")?;
        let (time, count) = (time.parse::<f64>()?, (marks[1] - marks[0]) as f64);
        let in_a_second = count / time * 1e9;
        match what {
            "without" => all.without.push(in_a_second),
            "halted" => all.halted.push(in_a_second),
            "woken" => all.woken.push(in_a_second),
            _ => ensure!(
                (count / time - 1.0).abs() < NEAR,
                "{count} instructions were counted, and the clock says {time}"
            ),
        }
    }
    ensure!(
        all.woken() > WOKEN_AT_LEAST,
        "one that is woken each second is not seen: {all:.0?}"
    );
    Ok(all)
}
