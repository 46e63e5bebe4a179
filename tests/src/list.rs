// SPDX-License-Identifier: GPL-2.0-only

//! The list of cases on the kinds of Host, as many machines side by side as there are processors
//! for them.
//!
//! Much of what a case does is waiting: for a Guest that sleeps, for Linux to give something back,
//! for a timer. Two machines on two processors take a little more than half the time of one after
//! the other.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::env;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, available_parallelism};

use anyhow::{Context, Result, anyhow};
use inside::cases::CASES;

use crate::artifacts::Artifacts;
use crate::cases::Runner;
use crate::hosts::{KINDS, Kind, SOAK};
use crate::report::Report;

/// How many machines there are at a time, if there are so many processors: one for the first kind,
/// which takes the longest in an ordinary run, and as good as all others have ended with it.
const AT_A_TIME: usize = 3;
/// What says otherwise.
const MACHINES: &str = "LGUEST_MACHINES";

/// A kind of Host, and the cases to be tried on it.
pub type Plan = Vec<(&'static Kind, Vec<&'static str>)>;

/// What an ordinary run tries, or with `long` a long one.
pub fn plan(report: &Report, long: bool, commit: &str) -> Plan {
    let all = long || report.is_filtered();
    of(report, long, |kind, name| all || kind.samples(commit, name))
}

/// Every case on every kind of Host, those of the long set only if they are asked for.
pub fn whole(report: &Report, long: bool) -> Plan {
    of(report, long, |_, name| long || name != SOAK)
}

fn of(report: &Report, long: bool, taken: impl Fn(&Kind, &str) -> bool) -> Plan {
    let names = |kind: &Kind| -> Vec<&'static str> {
        CASES
            .iter()
            .map(|case| case.name)
            .filter(|name| kind.takes(name) && report.wants(kind.section, name))
            .filter(|name| taken(kind, name))
            .collect()
    };
    // A kind of the long set is taken when it is asked for by its name.
    let mut plan: Plan = KINDS
        .iter()
        .filter(|kind| long || !kind.long || report.names(kind.section))
        .map(|kind| (kind, names(kind)))
        .filter(|(_, names)| !names.is_empty())
        .collect();
    // What takes longest begins first, so that in the end nobody waits for one alone.
    plan.sort_by_key(|(kind, names)| Reverse(names.len() * kind.patience as usize));
    plan
}

/// What all kinds of Host have in common in a run.
#[derive(Debug)]
pub struct List {
    /// What goes into the machines.
    pub artifacts: Artifacts,
    /// The commit that chose the cases, where they may be a sample.
    pub sampled: Option<String>,
    /// Whether each case may take longer than usual.
    pub long: bool,
}

impl List {
    /// Runs the cases of a plan.
    ///
    /// # Errors
    ///
    /// When a machine cannot be put together, or does not end; whatever was found before that is in
    /// the report.
    pub fn run(&self, report: &mut Report, plan: Plan) -> Result<()> {
        let at_a_time = at_a_time()?.min(plan.len());
        let plan = Mutex::new(VecDeque::from(plan));
        let take = || {
            plan.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front()
        };
        let one_after_the_other = |mut report: Report| {
            let mut result = Ok(());
            while let (Ok(()), Some((kind, names))) = (&result, take()) {
                result = self.on(&mut report, kind, &names);
            }
            (report, result)
        };
        thread::scope(|scope| {
            let machines: Vec<_> = (0..at_a_time)
                .map(|_| {
                    let apart = report.apart();
                    scope.spawn(|| one_after_the_other(apart))
                })
                .collect();
            let mut all = Ok(());
            for machine in machines {
                let (apart, result) = machine
                    .join()
                    .map_err(|_| anyhow!("a thread of the tests has panicked"))?;
                report.join(apart);
                all = all.and(result);
            }
            all
        })
    }

    /// Runs cases on one kind of Host.
    fn on(&self, report: &mut Report, kind: &'static Kind, names: &[&str]) -> Result<()> {
        /// What is built for a kind is built by one at a time.
        static BUILDING: Mutex<()> = Mutex::new(());
        let Kind { section, about, .. } = kind;
        let building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        match kind.missing() {
            Ok(None) => {}
            Ok(Some(why)) => {
                report.section(&format!("{section}: {about}"));
                report.skip(section, &why);
                return Ok(());
            }
            Err(error) => {
                report.section(&format!("{section}: {about}"));
                let why = format!("{error:#}");
                let log = report.keep(section, "set-up", why.as_bytes())?;
                report.fail(section, &why, &log);
                return Ok(());
            }
        }
        let version = kind.qemu.version()?;
        let mut runner = Runner::new(&self.artifacts, kind)?;
        drop(building);
        report.section(&format!("{section}: {about}; QEMU {version}"));
        match &self.sampled {
            Some(commit) if names.len() < CASES.len() => report.remark(&format!(
                "a sample of {} of {} cases, chosen by commit {commit}; all with --long",
                names.len(),
                CASES.len()
            )),
            _ => {}
        }
        runner.long = self.long;
        for (number, name) in names.iter().enumerate() {
            runner.run(report, name, number + 1 == names.len())?;
        }
        runner.end()
    }
}

/// How many machines there are at a time.
fn at_a_time() -> Result<usize> {
    match env::var(MACHINES) {
        Ok(number) => number
            .parse()
            .ok()
            .filter(|number| *number > 0)
            .with_context(|| format!("{MACHINES} is {number:?}, and has to be a number from 1 on")),
        Err(_) => Ok(AT_A_TIME.min(available_parallelism()?.get())),
    }
}
