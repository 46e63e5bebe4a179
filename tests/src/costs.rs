// SPDX-License-Identifier: GPL-2.0-only

//! What a program of the Guest's pays, counted in instructions by the machine itself, and what one
//! of the Host's Linux pays for the same in the same boot.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::artifacts::{self, Artifacts};
use crate::machine::{Machine, Settings};
use crate::trip;

/// How long Linux may take to come up in a machine that counts.
const BOOT: Duration = Duration::from_secs(600);

/// Instructions by whose program and what it did: `guest null_call`, `linux fault`.
pub type Costs = BTreeMap<String, u64>;

/// Has all of them counted.
///
/// # Errors
///
/// When something that is needed is not built, or the case fails.
pub fn count() -> Result<Costs> {
    let artifacts = Artifacts::collect()?;
    artifacts.complete()?;
    let log = artifacts::log_directory()?.join("bench-costs.log");
    let mut settings = Settings::new(&artifacts.kernel, artifacts.pack()?, &log);
    settings.count_instructions = true;
    let mut machine = Machine::start(&settings)?;
    machine.wait_until_ready(BOOT)?;
    let notes = trip::run(&mut machine, "program-costs")?;
    machine.quit(Duration::from_secs(60))?;
    costs(&notes)
}

/// The costs in the notes of a case.
fn costs(notes: &[String]) -> Result<Costs> {
    let mut costs = Costs::new();
    for note in notes {
        if let Some(cost) = note.strip_prefix("good: ") {
            let (name, value) = cost.rsplit_once(' ').with_context(|| note.clone())?;
            costs.insert(name.to_owned(), value.parse()?);
        }
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_costs() {
        let notes = ["good: guest fault 12", "something else"].map(str::to_owned);
        assert_eq!(costs(&notes).unwrap()["guest fault"], 12);
        assert!(costs(&["good: guest fault x".to_owned()]).is_err());
    }
}
