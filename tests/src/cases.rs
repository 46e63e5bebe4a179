// SPDX-License-Identifier: GPL-2.0-only

//! The cases in the machine, one boot for all of them while it lasts.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::artifacts::Artifacts;
use crate::chapters::in_chapters;
use crate::control::{Message, Verdict};
use crate::hosts::Kind;
use crate::machine::{Machine, Settings};
use crate::report::Report;

/// How long Linux may take to come up. It is usually there after ten seconds.
const BOOT: Duration = Duration::from_secs(180);
/// How long one case may take. The longest needs about ten seconds on a machine that is busy.
const CASE: Duration = Duration::from_secs(300);
/// And in the long set, where each may take its time.
const LONG_CASE: Duration = Duration::from_secs(1200);
/// A kernel that can is told to look for lost memory after so many cases, and after the last.
const SCAN_AFTER: usize = 8;
/// How long a machine may take to end.
const END: Duration = Duration::from_secs(30);

/// Runs cases on one kind of Host, booting again whenever a machine dies of one.
#[derive(Debug)]
pub struct Runner {
    kind: &'static Kind,
    settings: Settings,
    machine: Option<Machine>,
    boots: u32,
    /// The module in the machine, for the lines in what the kernel says of it.
    module: Option<PathBuf>,
    /// Whether cases are told to take their time.
    pub long: bool,
    /// How many cases have passed in this machine without a look for lost memory.
    unscanned: usize,
}

impl Runner {
    /// Nothing is booted before the first case.
    ///
    /// # Errors
    ///
    /// When an artifact cannot be read.
    pub fn new(artifacts: &Artifacts, kind: &'static Kind) -> Result<Self> {
        Ok(Self {
            kind,
            settings: kind.settings(artifacts)?,
            machine: None,
            boots: 0,
            module: kind.module(artifacts),
            long: false,
            unscanned: 0,
        })
    }

    /// Runs one case and reports it; `last` says that it is the last one.
    ///
    /// # Errors
    ///
    /// When the report cannot be kept.
    pub fn run(&mut self, report: &mut Report, name: &str, last: bool) -> Result<()> {
        let section = self.kind.section;
        let full = format!("{section}/{name}");
        let begun = Instant::now();
        let mut notes = String::new();
        let scan = last || self.unscanned + 1 == SCAN_AFTER;
        let result = self.attempt(report, name, scan, &mut notes);
        self.unscanned = if scan { 0 } else { self.unscanned + 1 };
        for line in notes.lines() {
            report.remark(line);
        }
        let place = |text: &str| in_chapters(text, self.module.as_deref());
        match result {
            Ok((Verdict::Pass, _)) => {
                report.pass(&format!("{full} ({:.1} s)", begun.elapsed().as_secs_f32()));
            }
            Ok((Verdict::Skip, why)) => report.skip(&full, &why),
            Ok((Verdict::Fail, why)) => {
                let why = place(&why);
                let log = self.story(report, name, &notes, &why)?;
                report.fail(&full, &why, &log);
                if self.kind.kernel.worn_by_failure() {
                    self.machine = None;
                }
            }
            Err(error) => {
                let why = place(&format!("{error:#}"));
                let log = self.story(report, name, &notes, &why)?;
                report.fail(&full, &why, &log);
                // Whatever state it is in, nobody can rely on it.
                self.machine = None;
            }
        }
        Ok(())
    }

    /// Ends the machine.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn end(&mut self) -> Result<()> {
        match self.machine.take() {
            Some(machine) => machine.quit(END).map(drop),
            None => Ok(()),
        }
    }

    /// The log of a failed case: what was said of it, and the kernel's words since the boot.
    fn story(&self, report: &Report, name: &str, notes: &str, why: &str) -> Result<PathBuf> {
        let kernel = fs::read(self.kernel_log(report)).unwrap_or_default();
        let kernel = in_chapters(&String::from_utf8_lossy(&kernel), self.module.as_deref());
        let text = format!("case {name}\n{notes}\n{why}\n\nThe Host's kernel:\n{kernel}");
        report.keep(self.kind.section, name, text.as_bytes())
    }

    fn kernel_log(&self, report: &Report) -> PathBuf {
        report.log_path(self.kind.section, &format!("boot {}", self.boots))
    }

    /// Runs one case; an error means that the machine cannot be used any more.
    fn attempt(
        &mut self,
        report: &Report,
        name: &str,
        scan: bool,
        notes: &mut String,
    ) -> Result<(Verdict, String)> {
        let mut machine = match self.machine.take() {
            Some(machine) => machine,
            None => self.boot(report)?,
        };
        let long = if self.long { " long" } else { "" };
        let scan = if scan { " scan" } else { "" };
        machine.tell(&format!("case {name}{long}{scan}"))?;
        let limit = if self.long { LONG_CASE } else { CASE };
        let end = Instant::now() + limit * self.kind.patience;
        let mut at = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let message = machine.hear(left);
            let message = message.with_context(|| match &at {
                Some(at) => format!("what it was doing: target/release/boot case '{at}'"),
                None => "it had not said what it was doing".to_owned(),
            });
            match message? {
                Message::At(text) => at = Some(text),
                Message::Start(_) => {}
                Message::Note(text) => {
                    notes.push_str(&text);
                    notes.push('\n');
                }
                Message::Inject(what) => {
                    machine.inject(what)?;
                    machine.tell("done")?;
                }
                Message::End(verdict, text) => {
                    self.machine = Some(machine);
                    return Ok((verdict, text));
                }
                other => bail!("the machine says {other:?}"),
            }
        }
    }

    fn boot(&mut self, report: &Report) -> Result<Machine> {
        self.boots += 1;
        self.unscanned = 0;
        self.settings.log = self.kernel_log(report);
        let mut machine = Machine::start(&self.settings)?;
        let facts = machine.wait_until_ready(BOOT * self.kind.patience)?;
        report.remark(&format!("booted Linux {facts}"));
        self.kind.check(&facts)?;
        Ok(machine)
    }
}
