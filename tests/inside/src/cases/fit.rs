// SPDX-License-Identifier: GPL-2.0-only

//! Hosts and kernels that the module refuses.

use std::ffi::CStr;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::kmod::{self, ModuleInitFlags};

use super::{Bench, guests};
use crate::host::{self, DEVICE, KernelLog, MODULE};

/// A module whose list of kernels has been changed.
const UNLISTED: &str = "/tmp/unlisted.ko";
/// The list as the module holds it.
const SERIES: &str = include_str!("../../../../kernel/series");

/// This machine cannot be a Host; the reason is noted, and the test command knows what it must be.
pub fn refused(bench: &mut Bench) -> Result<()> {
    let reason = expect_refusal(MODULE)?;
    bench.control.say("note", &reason)
}

/// The module is told of other kernels than this one.
pub fn unlisted(bench: &mut Bench) -> Result<()> {
    if host::module_loaded() {
        host::unload_module()?;
    }
    fs::write(UNLISTED, with_other_kernels(&fs::read(MODULE)?)?)?;
    let reason = expect_refusal(UNLISTED)?;
    for words in [" is not of a series that", "any_kernel=1"] {
        ensure!(reason.contains(words), "{reason:?} lacks {words:?}");
    }
    bench.control.say("note", &reason)?;
    load(UNLISTED, c"any_kernel=1").context("any_kernel=1 did not help")?;
    let log = last_words("lguest: Linux ")?;
    ensure!(log.contains("any_kernel=1"), "the log says {log:?}");
    guests::hello(bench)?;
    host::unload_module()?;
    host::load_module()
}

/// Loads a module that must be refused with ENODEV and leave nothing; gives the reason in the log.
fn expect_refusal(module: &str) -> Result<String> {
    let before = said("lguest: not loaded: ")?.len();
    match load(module, c"") {
        Err(Errno::ENODEV) => {}
        other => bail!("loading ended with {other:?}, not with ENODEV"),
    }
    let places = ["/sys/module/lguest", DEVICE, "/sys/kernel/debug/lguest"];
    for place in places {
        ensure!(!Path::new(place).exists(), "{place} is left behind");
    }
    let misc = fs::read_to_string("/proc/misc")?;
    ensure!(!misc.contains("lguest"), "/proc/misc has {misc:?}");
    let said = said("lguest: not loaded: ")?;
    ensure!(said.len() == before + 1, "the log has {said:?}");
    Ok(said.last().cloned().unwrap_or_default())
}

fn load(module: &str, words: &CStr) -> Result<(), Errno> {
    let file = File::open(module).map_err(|_| Errno::ENOENT)?;
    kmod::finit_module(&file, words, ModuleInitFlags::empty())
}

/// All that the kernel's log has that begins so.
fn said(start: &str) -> Result<Vec<String>> {
    let records = KernelLog::open()?.new_records()?;
    let texts = records.into_iter().map(|record| record.text);
    Ok(texts.filter(|text| text.starts_with(start)).collect())
}

fn last_words(start: &str) -> Result<String> {
    said(start)?
        .pop()
        .with_context(|| format!("no line of the log begins with {start:?}"))
}

/// The bytes of the module with each series in its list made another.
fn with_other_kernels(module: &[u8]) -> Result<Vec<u8>> {
    let others: String = SERIES.lines().map(another).collect();
    let mut places = (0..module.len()).filter(|at| module[*at..].starts_with(SERIES.as_bytes()));
    let place = places
        .next()
        .context("the module does not hold kernel/series as it is")?;
    ensure!(places.next().is_none(), "the module holds its list twice");
    let mut bytes = module.to_vec();
    bytes[place..place + SERIES.len()].copy_from_slice(others.as_bytes());
    Ok(bytes)
}

/// A line of the list; a series in it gets another first digit, so that its length stays.
fn another(line: &str) -> String {
    match line.as_bytes().first() {
        Some(digit @ b'0'..=b'8') => format!("{}{}\n", char::from(digit + 1), &line[1..]),
        Some(b'9') => format!("8{}\n", &line[1..]),
        _ => format!("{line}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_becomes_another() {
        assert_eq!(another("# 7.3"), "# 7.3\n");
        assert_eq!(another("7.3"), "8.3\n");
        assert_eq!(another("9.1"), "8.1\n");
        let module = [b"head", SERIES.as_bytes(), b"tail"].concat();
        let other = with_other_kernels(&module).unwrap();
        assert_eq!(other.len(), module.len());
        assert_ne!(other, module);
        assert!(with_other_kernels(b"no list").is_err());
        assert!(with_other_kernels(&[module.clone(), module].concat()).is_err());
    }
}
