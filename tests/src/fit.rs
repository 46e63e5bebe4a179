// SPDX-License-Identifier: GPL-2.0-only

//! Machines that cannot be a Host: the module must refuse them, say why, and leave nothing.
//!
//! Most of what makes a machine unfit cannot be had from an emulator. That is what the table in
//! the chapter on it is tested with; here are those that can.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::artifacts::Artifacts;
use crate::control::{Message, Verdict};
use crate::machine::{Machine, Settings};
use crate::report::Report;
use crate::sample;

/// What the section is called.
pub const SECTION: &str = "fit";

/// A machine that cannot be a Host.
#[derive(Debug)]
pub struct Unfit {
    /// Its name.
    pub name: &'static str,
    /// The processor's model and features, as QEMU names them.
    cpu: &'static str,
    /// More words for the kernel's command line.
    append: &'static str,
    /// What the log must say of it: what is wrong, and what to do.
    says: [&'static str; 2],
}

/// All of them.
pub const MACHINES: &[Unfit] = &[
    Unfit {
        name: "fsgsbase-off",
        cpu: "max",
        append: "nofsgsbase",
        says: ["FSGSBASE is off", "boot without nofsgsbase"],
    },
    Unfit {
        name: "fsgsbase-cleared",
        cpu: "max,la57=off",
        append: "clearcpuid=fsgsbase",
        says: ["FSGSBASE is off", "clearcpuid=fsgsbase"],
    },
    Unfit {
        name: "no-fsgsbase",
        cpu: "max,-fsgsbase",
        append: "",
        says: ["the processor has no FSGSBASE", "another model"],
    },
    Unfit {
        name: "no-nx",
        cpu: "max,-nx",
        append: "",
        says: ["the processor has no NX", "firmware"],
    },
];

impl Unfit {
    /// Whether an ordinary run at this commit tries it. At least one is always tried.
    pub fn samples(&self, commit: &str) -> bool {
        let chosen = sample::chosen(commit, self.name, MACHINES.len() as u64);
        chosen || self.name == "no-fsgsbase"
    }

    /// Boots it, has the module loaded, and reports how that went.
    ///
    /// # Errors
    ///
    /// When the report cannot be kept.
    pub fn test(&self, report: &mut Report, artifacts: &Artifacts) -> Result<()> {
        let begun = Instant::now();
        let full = format!("{SECTION}/{}", self.name);
        match self.attempt(report, artifacts) {
            Ok(reason) => {
                report.remark(&reason);
                report.pass(&format!("{full} ({:.1} s)", begun.elapsed().as_secs_f32()));
            }
            Err(error) => {
                let why = format!("{error:#}");
                let log = report.keep(SECTION, self.name, why.as_bytes())?;
                report.fail(&full, &why, &log);
            }
        }
        Ok(())
    }

    fn attempt(&self, report: &Report, artifacts: &Artifacts) -> Result<String> {
        let log = report.log_path(SECTION, &format!("boot {}", self.name));
        let mut settings = Settings::new(&artifacts.kernel, artifacts.pack()?, &log);
        settings.cpu = self.cpu.to_owned();
        settings.append = self.append.to_owned();
        settings.cpus = 1;
        let mut machine = Machine::start(&settings)?;
        machine.wait_until_ready(Duration::from_secs(180))?;
        machine.tell("case refused")?;
        let mut reason = String::new();
        loop {
            match machine.hear(Duration::from_secs(60))? {
                Message::Start(_) => {}
                Message::Note(text) => reason = text,
                Message::End(Verdict::Pass, _) => break,
                other => bail!("the machine says {other:?}"),
            }
        }
        machine.quit(Duration::from_secs(30))?;
        self.check(&reason)?;
        Ok(reason)
    }

    fn check(&self, reason: &str) -> Result<()> {
        for words in self.says {
            ensure!(
                reason.contains(words),
                "the reason is {reason:?}, which lacks {words:?}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_reason_is_not_taken_for_the_right_one() {
        let [off, .., nx] = MACHINES else {
            panic!("there are several");
        };
        let reason = "lguest: not loaded: the processor has no NX; switch it on in the firmware";
        assert!(nx.check(reason).is_ok());
        assert!(off.check(reason).is_err());
    }
}
