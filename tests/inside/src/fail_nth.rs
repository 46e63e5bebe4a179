// SPDX-License-Identifier: GPL-2.0-only

//! A kernel that fails to order: the n-th allocation, or copy from or to a program's memory, of a
//! task (CONFIG_FAULT_INJECTION and its kin, in `kernel/debug.config`).
//!
//! A number written to `/proc/thread-self/fail-nth` counts down with each of them; at 0 that one
//! fails. Read afterwards it says whether there were so many. That reading is itself a copy, so a
//! number of 1 takes the answer with it, which is an answer too.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use crate::host::Record;

/// Where the number is.
const NUMBER: &str = "/proc/thread-self/fail-nth";
/// What is set for each kind of failure while this is there, and what it was at boot.
const SETTINGS: [(&str, &str, &str); 10] = [
    // Most allocations may wait for memory, and are spared by default.
    ("failslab/ignore-gfp-wait", "N", "Y"),
    ("fail_page_alloc/ignore-gfp-wait", "N", "Y"),
    ("fail_page_alloc/ignore-gfp-highmem", "N", "Y"),
    ("fail_page_alloc/min-order", "0", "1"),
    // Each failure is told with the calls that led to it, however many they are.
    ("failslab/verbose_ratelimit_interval_ms", "0", "0"),
    ("fail_page_alloc/verbose_ratelimit_interval_ms", "0", "0"),
    ("fail_usercopy/verbose_ratelimit_interval_ms", "0", "0"),
    ("failslab/verbose", "2", "2"),
    ("fail_page_alloc/verbose", "2", "2"),
    ("fail_usercopy/verbose", "2", "2"),
];
/// How much of the log goes to the console: the reports would take a second each.
const CONSOLE: &str = "/proc/sys/kernel/printk";

/// The calling thread's number, and the settings around it.
#[derive(Debug)]
pub struct FailNth {
    number: File,
    console: String,
}

/// Which failure was made, by the kernel's report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What failed: `failslab`, `fail_page_alloc`, `fail_usercopy`.
    pub kind: String,
    /// The module's function nearest to it, if the module had called at all.
    pub within: Option<String>,
}

impl FailNth {
    /// For the calling thread; `None` where the kernel cannot.
    ///
    /// # Errors
    ///
    /// When a setting is refused.
    pub fn new() -> Result<Option<Self>> {
        let Ok(number) = OpenOptions::new().read(true).write(true).open(NUMBER) else {
            return Ok(None);
        };
        let console = fs::read_to_string(CONSOLE)?;
        for (name, value, _) in SETTINGS {
            let path = format!("/sys/kernel/debug/{name}");
            fs::write(&path, value).with_context(|| path.clone())?;
        }
        fs::write(CONSOLE, "1")?;
        Ok(Some(Self { number, console }))
    }

    /// Does something while the `n`-th failure is due; says how far off it is then, and 0 if it came.
    ///
    /// # Errors
    ///
    /// When the number is refused.
    pub fn with<T>(&self, n: u32, body: impl FnOnce() -> T) -> Result<(T, u32)> {
        let mut answer = [0; 16];
        let text = n.to_string();
        self.number.write_all_at(text.as_bytes(), 0)?;
        let result = body();
        let read = self.number.read_at(&mut answer, 0);
        // This may be the copy that fails, once.
        if self.number.write_all_at(b"0", 0).is_err() {
            self.number.write_all_at(b"0", 0)?;
        }
        let left = match read {
            Ok(length) => {
                let text = String::from_utf8_lossy(&answer[..length]).into_owned();
                text.trim().parse().context(text)?
            }
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => 1,
            Err(error) => bail!("{NUMBER}: {error}"),
        };
        Ok((result, left))
    }
}

impl Drop for FailNth {
    fn drop(&mut self) {
        for (name, _, value) in SETTINGS {
            // It was there before.
            let _ = fs::write(format!("/sys/kernel/debug/{name}"), value);
        }
        let _ = fs::write(CONSOLE, self.console.trim());
    }
}

/// How a report of a failure begins, and what ends it and every other with a call trace.
const BEGIN: &str = "FAULT_INJECTION: forcing a failure.";
const END: &str = "</TASK>";

/// Takes the kernel's reports of failures out of its log: the failures, and all other lines.
///
/// # Errors
///
/// When a report does not end, or has something in it that does not belong there.
pub fn reports(records: &[Record]) -> Result<(Vec<Failure>, Vec<Record>)> {
    let (mut failures, mut rest) = (Vec::new(), Vec::new());
    let mut records = records.iter();
    while let Some(record) = records.next() {
        let Some(head) = record.text.strip_prefix(BEGIN) else {
            rest.push(record.clone());
            continue;
        };
        let kind = head.split("name ").nth(1).and_then(|r| r.split(',').next());
        let mut failure = Failure {
            kind: kind.unwrap_or("unknown").to_owned(),
            within: None,
        };
        loop {
            let record = records.next().context("a report without an end")?;
            let text = record.text.trim();
            ensure!(
                !text.contains("BUG") && !text.contains("WARNING") && !text.starts_with("lguest:"),
                "in the report of a failure: {text}"
            );
            if text == END {
                break;
            }
            if failure.within.is_none() {
                failure.within = function(text);
            }
        }
        failures.push(failure);
    }
    Ok((failures, rest))
}

/// The module's function in a line of a call trace, if it surely is one.
fn function(line: &str) -> Option<String> {
    let name = line.strip_suffix("[lguest]")?.split('+').next()?;
    if name.starts_with("? ") {
        return None;
    }
    let name = format!("{:#}", rustc_demangle::demangle(name));
    Some(name.replace("lguest_main::", ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &str) -> Vec<Record> {
        let record = |line: &str| Record {
            level: 5,
            text: line.to_owned(),
        };
        text.lines().map(record).collect()
    }

    #[test]
    fn a_report_is_found_among_other_lines() {
        let text = "before\n\
            FAULT_INJECTION: forcing a failure.\\x0aname failslab, interval 1, probability 0\n\
            CPU: 1 UID: 0 PID: 1 Comm: init\n\
            <TASK>\n dump_stack_lvl+0x6/0x8\n \
            ? _RNvNtCs1_11lguest_main5other4this+0x1/0x2 [lguest]\n \
            _RNvNtCs1_11lguest_main6device6set_up+0x1/0x2 [lguest]\n \
            do_one_initcall+0x1/0x2\n </TASK>\nafter";
        let (failures, rest) = reports(&log(text)).expect("a whole report");
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].kind, "failslab");
        assert_eq!(failures[0].within.as_deref(), Some("device::set_up"));
        assert_eq!(rest, log("before\nafter"));
        let half = format!("{BEGIN}\nCPU: 1");
        assert!(reports(&log(&half)).is_err());
        let bad = format!("{BEGIN}\nWARNING: CPU: 1\n</TASK>");
        assert!(reports(&log(&bad)).is_err());
    }
}
